"""World models whose code is a repository: loaded through ``torch.hub``, from a copy on this
machine or pinned to a commit, and only when that was allowed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldforge_ros.errors import ErrorCode, mismatch

_PINNED = re.compile(r"[^/:\s]+/[^/:\s]+:[0-9a-f]{40}")


@dataclass(frozen=True)
class Family:
    """A kind of model and where its code comes from."""

    name: str
    home: str


def hub_pair(
    family: Family, model: str, repository: str, trusted: bool, expected: str, **arguments: Any
) -> tuple[Any, Any]:
    """The two objects that an entry of a repository's ``hubconf.py`` returns.

    :param model: name of the entry, called with ``arguments``.
    :param repository: a folder, or ``owner/name:commit``.
    :param trusted: whether its code may run.
    :param expected: what the two objects are, for a sentence.
    :raises WorldForgeError: ``CHECKPOINT_UNTRUSTED``, ``CHECKPOINT_MISSING``,
        ``CHECKPOINT_INVALID`` or ``DEPENDENCY_MISSING``.
    """
    folder = Path(repository).expanduser()
    local = folder.is_dir()
    if local and not (folder / "hubconf.py").is_file():
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            f"{family.name} repository",
            found=f"{folder} without hubconf.py",
            expected=f"a copy of {family.home}",
        )
    if not local and not _PINNED.fullmatch(repository):
        looks_local = repository.startswith(("/", "~", "."))
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING if looks_local else ErrorCode.CHECKPOINT_UNTRUSTED,
            f"{family.name} repository",
            found=f"'{repository}'",
            expected="a folder that exists"
            if looks_local
            else "owner/name:commit with the commit's 40 hex digits",
        )
    if not trusted:
        raise mismatch(
            ErrorCode.CHECKPOINT_UNTRUSTED,
            "trust_repository",
            found="false",
            expected=f"true: loading runs the code of {repository}",
        )
    source: dict[str, Any] = (
        {"source": "local"} if local else {"trust_repo": True, "skip_validation": True}
    )
    try:
        load: Any = torch.hub.load
        loaded = load(str(folder) if local else repository, model, **arguments, **source)
    except ImportError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            f"python module {error.name}, which {family.name} needs",
            found=f"absent ({error})",
            expected="installed",
        ) from error
    except (Exception, SystemExit) as error:
        # The repository's own code runs here and may raise anything.
        text = " ".join(str(error).split())[:300]
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            f"{family.name} model {model}",
            found=f"not loadable ({type(error).__name__}: {text})",
            expected="a model of the repository's hubconf.py",
        ) from error
    if not isinstance(loaded, tuple) or len(loaded) != 2:
        raise mismatch(
            ErrorCode.CHECKPOINT_INVALID,
            f"{family.name} model {model}",
            found=type(loaded).__name__,
            expected=expected,
        )
    return loaded


def parameters_sha256(model: Any) -> str:
    """Hash of all parameters and buffers; empty for a runtime that is no torch module."""
    if not isinstance(model, torch.nn.Module):
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
