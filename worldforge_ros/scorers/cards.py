"""What was measured about a checkpoint and stands beside it: JSON that names the weights it is
about. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from worldforge_ros.checkpoints import file_sha256
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.scorers.checkpoint import find_checkpoint, read_json

DRIFT_FILE = "drift.json"
DRIFT_SCHEMA = "worldforge_ros/drift_card/1"


def write_card(path: Path, schema: str, document: Mapping[str, Any]) -> None:
    """Write a card; it appears under its name only when complete."""
    partial = path.with_suffix(".partial")
    text = json.dumps({"schema": schema, **document}, indent=2, allow_nan=False) + "\n"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_card(path: Path, schema: str, sha256: str, embodiment: Embodiment) -> dict[str, Any]:
    """The content of a card, which must be about these weights and this robot.

    :raises WorldForgeError: ``CHECKPOINT_MISSING`` without the file, ``CHECKPOINT_INVALID`` for
        one of another schema, ``EMBODIMENT_MISMATCH`` for one of another robot or block,
        ``CHECKPOINT_UNTRUSTED`` for one of other weights.
    """
    if not path.is_file():
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            f"card {path.name}",
            found=f"none at {path}",
            expected="one that --write-card has written",
        )
    document = read_json(path)
    found = document.pop("schema", None)
    if found != schema:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID, f"{path}: schema", found=repr(found), expected=schema
        )
    for name, expected in (
        ("embodiment", embodiment.name),
        ("block_seconds", embodiment.scoring.block_duration),
    ):
        if document.get(name) != expected:
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                f"{path}: {name}",
                found=document.get(name),
                expected=expected,
            )
    if document.get("sha256") != sha256:
        raise mismatch(
            ErrorCode.CHECKPOINT_UNTRUSTED,
            f"{path}: sha256",
            found=document.get("sha256"),
            expected=f"{sha256} of the weights beside it",
        )
    return document


def beside(model: str, name: str, root: str = "") -> Path:
    """Where the card ``name`` of a checkpoint would be.

    :param model: a path or a run name, see
        :func:`~worldforge_ros.scorers.checkpoint.find_checkpoint`, as is ``root``.
    :raises WorldForgeError: as there.
    """
    return find_checkpoint(model, root).folder / name


@dataclass(frozen=True)
class DriftCard:
    """How many blocks ahead a checkpoint is believed; ``at_least`` where a longer measurement might
    find more. ``source`` says where that comes from.
    """

    model_id: str
    sha256: str
    embodiment: str
    block_seconds: float
    drift_horizon_blocks: int
    at_least: bool
    episodes: int
    source: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """See :func:`write_card`."""
        write_card(path, DRIFT_SCHEMA, asdict(self))

    @classmethod
    def read(cls, path: Path, sha256: str, embodiment: Embodiment) -> DriftCard:
        """See :func:`read_card`.

        :raises WorldForgeError: as there, and ``CHECKPOINT_INVALID`` for wrong fields.
        """
        document = read_card(path, DRIFT_SCHEMA, sha256, embodiment)
        try:
            card = cls(**document)
        except TypeError as error:
            raise WorldForgeError(
                ErrorCode.CHECKPOINT_INVALID, f"{path} is not a drift card: {error}"
            ) from error
        blocks = card.drift_horizon_blocks
        if type(blocks) is not int or blocks < 0:
            raise mismatch(
                ErrorCode.CHECKPOINT_INVALID,
                f"{path}: drift_horizon_blocks",
                found=repr(blocks),
                expected="a whole number of 0 or more",
            )
        return card


def drift_horizon_of(model: str, embodiment: Embodiment) -> int:
    """Blocks that the card beside a checkpoint believes it, 0 without a card of this robot.

    :param model: a path or a run name, see
        :func:`~worldforge_ros.scorers.checkpoint.find_checkpoint`.
    :raises WorldForgeError: ``HORIZON_BEYOND_DRIFT`` for a model that is not believed for a single
        block, and as :func:`read_card`.
    """
    try:
        checkpoint = find_checkpoint(model)
    except WorldForgeError:
        # Whoever loads it says what is wrong.
        return 0
    path = checkpoint.folder / DRIFT_FILE
    if not path.is_file():
        return 0
    try:
        card = DriftCard.read(path, file_sha256(checkpoint.weights), embodiment)
    except WorldForgeError as error:
        if error.code is ErrorCode.EMBODIMENT_MISMATCH:
            # Measured on another robot: for this one nobody has.
            return 0
        raise
    if card.drift_horizon_blocks < 1:
        raise mismatch(
            ErrorCode.HORIZON_BEYOND_DRIFT,
            f"{path}: drift_horizon_blocks",
            found=card.drift_horizon_blocks,
            expected="1 or more: what a world model of this card says is not worth asking for",
        )
    return card.drift_horizon_blocks
