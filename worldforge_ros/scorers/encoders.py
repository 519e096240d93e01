"""Small image encoders and the one way that pictures become model inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

ImageSize = int | tuple[int, int]
"""Height and width in pixels, or the side of a square."""


def height_width(size: ImageSize) -> tuple[int, int]:
    """Height and width in pixels."""
    return (size, size) if isinstance(size, int) else size


def resize_pixels(images: npt.NDArray[np.uint8], size: ImageSize) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8 to (N, height, width, 3) uint8 of ``size``, bilinear with antialiasing,
    rounded; the whole picture, neither padded nor cut.

    The first half of the preprocessing; training caches its result, scoring calls it.
    """
    wanted = height_width(size)
    if images.shape[1:3] == wanted:
        return images
    # A copy: memory-mapped arrays are read-only, and torch warns about those.
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    small = nn.functional.interpolate(pixels, wanted, mode="bilinear", antialias=True)
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


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ConvEncoder(nn.Module):
    """Strided convolutions behind the call signature of a Hugging Face ViT.

    ``channels`` gives one halving of the picture each, the first ``stem`` 2 or, cheaper for large
    pictures, 4 at once. Two readings are joined: the last maps, flattened, and the expected
    positions under a soft-max over ``maps`` maps of the stages at a quarter and an eighth of the
    picture's size (spatial soft-argmax, arXiv 1509.06113), which are exact to a part of a pixel.
    """

    def __init__(
        self,
        image_size: ImageSize,
        channels: tuple[int, ...],
        maps: int,
        dim: int,
        stem: int = 2,
    ) -> None:
        super().__init__()
        widths = (3, *channels)
        self.stages = nn.ModuleList(
            _convolution(widths[index], widths[index + 1], 3, 2)
            if index
            else _convolution(3, channels[0], 2 * stem + 1, stem)
            for index in range(len(channels))
        )
        read = (1, 2) if stem == 2 else (0, 1)
        self.maps = nn.ModuleDict(
            {str(index): nn.Conv2d(channels[index], maps, 1) for index in read}
        )
        height, width = height_width(image_size)
        for index in range(len(channels)):
            stride = 2 if index else stem
            height, width = -(-height // stride), -(-width // stride)
            if str(index) in self.maps:
                self.register_buffer(f"grid_{index}", _grid(height, width), persistent=False)
        self.head = nn.Linear(channels[-1] * height * width + 4 * maps, dim)

    def forward(self, pixels: Tensor, interpolate_pos_encoding: bool = False) -> EncoderOutput:
        """(N, 3, height, width) float to one token (N, 1, dim); the flag is part of the ViT
        signature.
        """
        readings = []
        maps = pixels
        for index, stage in enumerate(self.stages):
            maps = stage(maps)
            if str(index) in self.maps:
                heat = self.maps[str(index)](maps).flatten(2).float().softmax(dim=-1)
                readings.append((heat @ getattr(self, f"grid_{index}")).flatten(1))
        joined = torch.cat([maps.flatten(1).float(), *readings], dim=-1)
        return EncoderOutput(self.head(joined)[:, None])


def _grid(height: int, width: int) -> Tensor:
    """Positions (height * width, 2) from -1 to 1 along each side, x first."""
    x, y = torch.linspace(-1.0, 1.0, width), torch.linspace(-1.0, 1.0, height)
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)
