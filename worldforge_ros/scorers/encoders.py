"""Small image encoders and the one way that pictures become model inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


def resize_pixels(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8 to (N, size, size, 3) uint8, bilinear with antialiasing, rounded.

    The first half of the preprocessing; training caches its result, scoring calls it.
    """
    if images.shape[1:3] == (size, size):
        return images
    # A copy: memory-mapped arrays are read-only, and torch warns about those.
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    small = nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    rounded: npt.NDArray[np.uint8] = (
        small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    )
    return rounded


def normalise_pixels(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(..., H, W, 3) uint8 to (..., 3, H, W) float32: divided by 255, then mean and std a
    channel.
    """
    shift = torch.tensor(mean, device=images.device)
    scale = torch.tensor(std, device=images.device)
    return ((images.float() / 255.0 - shift) / scale).movedim(-1, -3)


@dataclass
class EncoderOutput:
    """What :class:`stable_worldmodel.wm.lewm.LeWM` reads from an encoder: (N, 1, dim)."""

    last_hidden_state: Tensor


class ConvEncoder(nn.Module):
    """Strided convolutions behind the call signature of a Hugging Face ViT.

    ``channels`` gives one halving of the picture each; the last map is flattened, so position
    survives.
    """

    def __init__(self, image_size: int, channels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for index, width in enumerate(channels):
            kernel = 5 if index == 0 else 3
            layers += [
                nn.Conv2d(previous, width, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            previous = width
        side = image_size
        for _ in channels:
            side = (side + 1) // 2
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(previous * side * side, dim)

    def forward(self, pixels: Tensor, interpolate_pos_encoding: bool = False) -> EncoderOutput:
        """(N, 3, size, size) float to one token (N, 1, dim); the flag is part of the ViT
        signature.
        """
        return EncoderOutput(self.head(self.body(pixels).flatten(1))[:, None])
