"""A small network that reads places out of a camera picture: the block's keypoints, a cube."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkShape:
    """What a network reads and how large it is; the defaults are the shipped PushT network's.

    ``height`` and ``width`` of the pictures are multiples of 8 pixels. ``outputs`` numbers come
    out, in the unit of ``low`` and ``span``: the network's own 0 stands for the middle of ``low``
    to ``low + span``. PushT: x0, y0, x1, y1, ... of 8 keypoints in millimetres. ``channels`` of the
    first layer, ``maps`` of expected positions, ``code_maps`` coarse maps that the code of
    ``hidden`` numbers is made of. ``blobs``: maps at half the picture's size whose mass and centre
    are read too, for objects of a few pixels, between whose positions a soft-max jumps.
    """

    height: int = 96
    width: int = 96
    outputs: int = 16
    low: float = 0.0
    span: float = 512.0
    channels: int = 24
    maps: int = 32
    code_maps: int = 128
    hidden: int = 128
    blobs: int = 0


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class KeypointNetwork(nn.Module):
    """Pictures (B, 3, height, width) float in 0..1 to (B, outputs) float32, see
    :class:`NetworkShape`.

    Readings of the picture are joined: expected positions under a soft-max over feature maps
    (exact in place, blind to identity), a dense code of the coarse maps (knows which way the
    block faces) and, where the shape has blobs, their masses and centres.
    """

    grid_x: Tensor
    grid_y: Tensor
    half_x: Tensor
    half_y: Tensor

    def __init__(self, shape: NetworkShape | None = None) -> None:
        super().__init__()
        self.shape = own = shape or NetworkShape()
        width, hidden = own.channels, own.hidden
        self.fine = nn.Sequential(_conv(3, width, 5, 2), _conv(width, 2 * width, 3, 2))
        self.coarse = nn.Sequential(
            _conv(2 * width, 4 * width, 3, 2),
            _conv(4 * width, 4 * width, 3, 1),
            _conv(4 * width, own.code_maps, 3, 2),
        )
        self.heat = nn.Conv2d(6 * width, own.maps, 1)
        self.middle = _conv(4 * width, 4 * width, 1, 1)
        rows, columns = own.height // 4, own.width // 4
        self._grids("grid", rows, columns)
        if own.blobs:
            self.blob = nn.Conv2d(width, own.blobs, 1)
            self._grids("half", 2 * rows, 2 * columns)
        cells = -(-own.height // 16) * -(-own.width // 16)
        self.code = nn.Sequential(nn.Linear(own.code_maps * cells, hidden), nn.ReLU())
        self.head = nn.Sequential(
            nn.Linear(hidden + 2 * own.maps + 3 * own.blobs, 2 * hidden),
            nn.ReLU(),
            nn.Linear(2 * hidden, own.outputs),
        )

    def _grids(self, name: str, rows: int, columns: int) -> None:
        """Places of the cells of a map, -1 to 1, that are no part of the weights."""
        across = torch.linspace(-1.0, 1.0, columns).repeat(rows, 1)
        down = torch.linspace(-1.0, 1.0, rows).repeat(columns, 1).t().contiguous()
        self.register_buffer(f"{name}_x", across.flatten(), persistent=False)
        self.register_buffer(f"{name}_y", down.flatten(), persistent=False)

    def _blobs(self, first: Tensor) -> list[Tensor]:
        """Centres and masses of the blobs, (B, blobs) each."""
        weight = nn.functional.relu(self.blob(first)).flatten(2).float()
        mass = weight.sum(dim=-1)
        share = weight / (mass[..., None] + 1e-3)
        return [share @ self.half_x, share @ self.half_y, torch.log1p(mass)]

    def forward(self, image: Tensor) -> Tensor:
        """Places (B, outputs) float32 of pictures (B, 3, height, width) float in 0..1."""
        first = self.fine[0](image * 2.0 - 1.0)
        fine = self.fine[1](first)
        middle = self.coarse[1](self.coarse[0](fine))
        low = self.coarse[2](middle)
        wide = nn.functional.interpolate(self.middle(middle), scale_factor=2, mode="nearest")
        heat = self.heat(torch.cat([fine, wide], dim=1)).flatten(2).float().softmax(dim=-1)
        read = [self.code(low.flatten(1)).float(), heat @ self.grid_x, heat @ self.grid_y]
        if self.shape.blobs:
            read += self._blobs(first)
        joined = torch.cat(read, dim=-1)
        points: Tensor = (self.head(joined).float() + 0.5) * self.shape.span + self.shape.low
        return points
