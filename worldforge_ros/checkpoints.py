"""What every kind of checkpoint needs: a hash of its file, a device to put it on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from worldforge_ros.errors import ErrorCode, mismatch

if TYPE_CHECKING:
    import torch


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """One hash of the weights and settings in a checkpoint folder.

    :raises WorldForgeError: ``CHECKPOINT_MISSING``.
    """
    if not folder.is_dir():
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING, "checkpoint", found=f"no folder {folder}", expected="one"
        )
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".pt"):
            total.update(path.name.encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def tree_sha256(folder: Path) -> str:
    """One hash of every file below a folder, with its name."""
    total = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        total.update(str(path.relative_to(folder)).encode())
        total.update(file_sha256(path).encode())
    return total.hexdigest()


def torch_device(name: str) -> torch.device:
    """The torch device of that name, once something could be put on it.

    :raises WorldForgeError: ``DEVICE_UNAVAILABLE``.
    """
    import torch

    try:
        place = torch.device(name)
        # Only an allocation tells whether the device is really there.
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise mismatch(
            ErrorCode.DEVICE_UNAVAILABLE,
            "device",
            found=f"'{name}' ({' '.join(str(error).split())[:300]})",
            expected=f"a device torch can use here, one of {usable}",
        ) from error
    return place


def training_device(name: str) -> torch.device:
    """:func:`torch_device`, where ``auto`` is the first GPU or, without one, the CPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch_device(name)
