"""Where a LeWorldModel checkpoint is and what kind it is; reading it runs no code.

======================  ======================================================================
``config+safetensors``  folder with ``config.json`` and ``model.safetensors``
``config+pt``           the same with one ``.pt`` file of plain tensors, as on the hub and as
                        ``stable_worldmodel.wm.utils.save_pretrained`` writes it
``object``              ``<run>_object.ckpt``, a pickle: upstream loads it, and only by its hash
======================  ======================================================================
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

if TYPE_CHECKING:
    from torch import Tensor

OBJECT_SUFFIX = "_object.ckpt"
DEFAULT_HOME = "~/.stable_worldmodel"
"""What stable-worldmodel takes without ``STABLEWM_HOME``."""

Kind = Literal["config+safetensors", "config+pt", "object"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found: its kind, the file with the weights, the folder of the rest."""

    kind: Kind
    weights: Path
    folder: Path

    @property
    def name(self) -> str:
        """Short name of the run."""
        if self.kind == "object":
            return self.weights.name.removesuffix(OBJECT_SUFFIX)
        return self.folder.resolve().name


def homes(root: str = "") -> tuple[Path, ...]:
    """Folders that a run name is relative to, in order.

    stable-worldmodel 0.0.x looks in its home, 0.1.x in ``checkpoints`` inside it. ``root`` takes
    the place of ``STABLEWM_HOME``.
    """
    chosen = root.strip() or os.environ.get("STABLEWM_HOME", "").strip() or DEFAULT_HOME
    home = Path(chosen).expanduser()
    return home, home / "checkpoints"


def find_checkpoint(name: str, root: str = "") -> Checkpoint:
    """The checkpoint that ``name`` means: a path, a run name in :func:`homes`, or ``user/name`` as
    downloaded before.

    :raises WorldForgeError: ``CHECKPOINT_MISSING`` naming where it was looked for,
        ``CHECKPOINT_INVALID`` for what is there but is no checkpoint.
    """
    if name.endswith(OBJECT_SUFFIX):
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            "world-model checkpoint",
            found=f"'{name}'",
            expected=f"the run name without the suffix: '{name.removesuffix(OBJECT_SUFFIX)}' "
            f"(stable-worldmodel adds {OBJECT_SUFFIX} itself)",
        )
    path = Path(name).expanduser()
    places = [path]
    if not path.is_absolute():
        hub = f"models--{name.replace('/', '--')}"
        places += [home / part for home in homes(root) for part in (name, hub)]
    for place in places:
        found = _at(place)
        if found is not None:
            return found
    raise mismatch(
        ErrorCode.CHECKPOINT_MISSING,
        "world-model checkpoint",
        found=f"'{name}', in none of {', '.join(str(place) for place in places)}",
        expected=f"a folder with config.json and weights, or a run with {OBJECT_SUFFIX}",
    )


def _at(place: Path) -> Checkpoint | None:
    if place.is_file() and place.suffix in (".pt", ".safetensors"):
        return _beside_config(place)
    if place.is_dir():
        safe = place / "model.safetensors"
        plain = sorted(place.glob("*.pt"))
        objects = sorted(place.glob(f"*{OBJECT_SUFFIX}"))
        if safe.is_file():
            return _beside_config(safe)
        if place / "weights.pt" in plain:
            return _beside_config(place / "weights.pt")
        if len(plain) == 1:
            return _beside_config(plain[0])
        if not plain and len(objects) == 1:
            return Checkpoint("object", objects[0], place)
        found = [item.name for item in (*plain, *objects)]
        if found:
            raise _invalid(
                f"folder {place}", f"with {found}", "one weights file; name the one you mean"
            )
        if (place / "config.json").is_file():
            raise mismatch(
                ErrorCode.CHECKPOINT_MISSING,
                "world-model checkpoint",
                found=f"without weights in {place}",
                expected="model.safetensors or weights.pt",
            )
        return None
    single = place.with_name(place.name + OBJECT_SUFFIX)
    return Checkpoint("object", single, single.parent) if single.is_file() else None


def _beside_config(weights: Path) -> Checkpoint:
    if not (weights.parent / "config.json").is_file():
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            "world-model checkpoint",
            found=f"without {weights.parent / 'config.json'}",
            expected="that file beside the weights",
        )
    kind: Kind = "config+safetensors" if weights.suffix == ".safetensors" else "config+pt"
    return Checkpoint(kind, weights, weights.parent)


def check_hash(checkpoint: Checkpoint, found: str, wanted: str) -> None:
    """Refuse weights whose SHA-256 ``found`` is not ``wanted``; empty wants none in particular.

    :raises WorldForgeError: ``CHECKPOINT_UNTRUSTED`` for another hash, and for an object checkpoint
        whose hash nobody named: it is a pickle, which runs code as it loads.
    """
    if wanted and found != wanted.lower():
        raise mismatch(
            ErrorCode.CHECKPOINT_UNTRUSTED,
            f"SHA-256 of {checkpoint.weights}",
            found=found,
            expected=f"{wanted.lower()}, as configured",
        )
    if checkpoint.kind == "object" and not wanted:
        raise mismatch(
            ErrorCode.CHECKPOINT_UNTRUSTED,
            f"{checkpoint.weights}",
            found="a pickle, which runs code as it loads",
            expected=f"its SHA-256 in the parameter sha256 ({found}) if you trust it",
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    :raises WorldForgeError: ``CHECKPOINT_MISSING`` or ``CHECKPOINT_INVALID``.
    """
    _present(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _invalid(str(path), f"not JSON ({error})", "a JSON object") from error
    if not isinstance(document, dict):
        raise _invalid(str(path), type(document).__name__, "a JSON object")
    return document


def read_weights(
    path: Path, check: Callable[[str], None] | None = None
) -> tuple[dict[str, Tensor], str]:
    """Tensors by name and the SHA-256 of the very bytes they were read from.

    :param check: sees the hash before anything is read from the bytes.
    :raises WorldForgeError: ``CHECKPOINT_MISSING``, or ``CHECKPOINT_INVALID`` for anything but
        plain tensors.
    """
    import torch

    _present(path)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if check is not None:
        check(sha256)
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load

            try:
                state: Any = load(content)
            except SafetensorError as error:
                raise _invalid(str(path), str(error), "a safetensors file") from error
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        first = (str(error) or "nothing readable").splitlines()[0]
        raise _invalid(str(path), first, "plain tensors") from error
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise _invalid(str(path), type(state).__name__, "a mapping of names to tensors")
    return dict(state), sha256


def _invalid(field: str, found: object, expected: str) -> WorldForgeError:
    return mismatch(ErrorCode.CHECKPOINT_INVALID, field, found=found, expected=expected)


def _present(path: Path) -> None:
    if not path.is_file():
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            "world-model checkpoint",
            found=f"without {path}",
            expected="that file",
        )
