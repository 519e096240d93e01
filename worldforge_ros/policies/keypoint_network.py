"""A small network that reads the block's keypoints out of the PushT camera picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KEYPOINTS = 8
IMAGE_SIZE = 96
WORKSPACE = 512.0
"""Side of the workspace in environment units (millimetres)."""


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class KeypointNetwork(nn.Module):
    """Picture (B, 3, 96, 96) float in 0..1 to keypoints (B, 16): x0, y0, x1, y1, ... in
    millimetres.

    Two readings of the picture are joined: expected positions under a soft-max over feature maps
    (exact in place, blind to identity) and a dense code of the coarse maps (knows which way the
    block faces).
    """

    def __init__(self, width: int = 24, maps: int = 32, hidden: int = 128) -> None:
        super().__init__()
        self.fine = nn.Sequential(_conv(3, width, 5, 2), _conv(width, 2 * width, 3, 2))
        self.coarse = nn.Sequential(
            _conv(2 * width, 4 * width, 3, 2),
            _conv(4 * width, 4 * width, 3, 1),
            _conv(4 * width, 128, 3, 2),
        )
        self.heat = nn.Conv2d(6 * width, maps, 1)
        self.middle = _conv(4 * width, 4 * width, 1, 1)
        side = IMAGE_SIZE // 4
        grid = torch.linspace(-1.0, 1.0, side)
        self.register_buffer("grid_x", grid.repeat(side, 1).flatten(), persistent=False)
        self.register_buffer(
            "grid_y", grid.repeat(side, 1).t().contiguous().flatten(), persistent=False
        )
        self.code = nn.Sequential(nn.Linear(128 * (IMAGE_SIZE // 16) ** 2, hidden), nn.ReLU())
        self.head = nn.Sequential(
            nn.Linear(hidden + 2 * maps, 2 * hidden),
            nn.ReLU(),
            nn.Linear(2 * hidden, 2 * KEYPOINTS),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Keypoints (B, 16) float32 in millimetres of pictures (B, 3, 96, 96) float in 0..1."""
        fine = self.fine(image * 2.0 - 1.0)
        middle = self.coarse[1](self.coarse[0](fine))
        low = self.coarse[2](middle)
        wide = nn.functional.interpolate(self.middle(middle), scale_factor=2, mode="nearest")
        heat = self.heat(torch.cat([fine, wide], dim=1)).flatten(2).float().softmax(dim=-1)
        places = torch.cat([heat @ self.grid_x, heat @ self.grid_y], dim=-1)
        joined = torch.cat([self.code(low.flatten(1)).float(), places], dim=-1)
        points: Tensor = (self.head(joined).float() + 0.5) * WORKSPACE
        return points
