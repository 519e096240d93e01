"""Is everything there that scoring needs? Checks that name what is missing, never its value."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from worldforge_ros.checkpoints import file_sha256, torch_device
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.resources import resolve_path
from worldforge_ros.scorers.checkpoint import check_hash, find_checkpoint
from worldforge_ros.scorers.loading import ScorerConfig, load_scorer

Level = Literal["ok", "warning", "error"]

NEEDED: Mapping[str, tuple[str, ...]] = {
    "lewm": ("torch", "safetensors", "transformers", "stable_worldmodel"),
    "jepa_wms": ("torch", "torchvision", "yaml", "omegaconf", "einops", "tensordict"),
}
"""Modules that a family cannot do without."""


@dataclass(frozen=True)
class Check:
    """One finding: ``code`` is empty where nothing is wrong."""

    name: str
    level: Level
    message: str
    code: str = ""


def check_scorer(config: ScorerConfig, embodiment: Embodiment, loaded: str = "") -> list[Check]:
    """Imports, interfaces, settings and, unless a model is ``loaded``, whether it loads.

    Every check is made, whatever the others find.
    """
    checks = [_module(name) for name in NEEDED[config.scorer]]
    if config.scorer == "lewm":
        checks += [_auto_cost_model(), _openvino(config.backend)]
    checks += _settings(config)
    if loaded:
        return [*checks, Check("world model", "ok", f"loaded: {loaded}")]
    there = [_attempt("device", lambda: _device(config))]
    if config.scorer == "lewm":
        there.append(_attempt("checkpoint", lambda: _checkpoint(config)))
    if any(check.level == "error" for check in there):
        return [*checks, *there]
    return [*checks, *there, _attempt("world model", lambda: _loaded(config, embodiment))]


def _import(name: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _module(name: str) -> Check:
    try:
        module = _import(name)
    except Exception as error:
        # The import that failed may be another one, deeper inside; and a library that is there but
        # broken raises what it likes.
        culprit = getattr(error, "name", None) or name
        text = " ".join(str(error).split()) or type(error).__name__
        return Check(
            f"module {name}",
            "error",
            f"import of {culprit} failed ({text})",
            str(ErrorCode.DEPENDENCY_MISSING),
        )
    version = getattr(module, "__version__", "")
    return Check(f"module {name}", "ok", f"there{f', {version}' if version else ''}")


def _auto_cost_model() -> Check:
    name = "stable_worldmodel.policy.AutoCostModel"
    try:
        found = hasattr(_import("stable_worldmodel.policy"), "AutoCostModel")
        problem = "absent"
    except Exception as error:
        found, problem = False, f"import failed ({type(error).__name__})"
    if found:
        return Check(name, "ok", "there: object checkpoints can be loaded")
    return Check(
        name,
        "warning",
        f"{problem}: object checkpoints cannot be loaded; config.json and weights can",
        str(ErrorCode.DEPENDENCY_MISSING),
    )


def _openvino(backend: str) -> Check:
    if backend != "openvino" and importlib.util.find_spec("openvino") is None:
        return Check("module openvino", "ok", "absent, and backend openvino is not asked for")
    return _module("openvino")


def _settings(config: ScorerConfig) -> list[Check]:
    checks = []
    for setting in config.settings.values():
        if setting.overridden:
            checks.append(
                Check(
                    f"setting {setting.name}",
                    "warning",
                    f"from {setting.source}; {', '.join(setting.overridden)} is set but does not "
                    "count",
                )
            )
        else:
            checks.append(Check(f"setting {setting.name}", "ok", f"from {setting.source}"))
    return checks


def _device(config: ScorerConfig) -> str:
    return f"{torch_device(config.value('device'))} can be used"


def _checkpoint(config: ScorerConfig) -> str:
    path = str(resolve_path(config.value("model_path")))
    checkpoint = find_checkpoint(path, config.value("cache_dir"))
    check_hash(checkpoint, file_sha256(checkpoint.weights), config.sha256)
    hashed = "the hash asked for" if config.sha256 else "no hash asked for"
    return f"{checkpoint.kind}, {hashed}"


def _loaded(config: ScorerConfig, embodiment: Embodiment) -> str:
    return f"loads: {load_scorer(config, embodiment).model_id}"


def _attempt(name: str, action: Callable[[], str]) -> Check:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Check(name, "ok", action())
    except WorldForgeError as error:
        return Check(name, "error", error.message, str(error.code))
    except ImportError as error:
        text = f"import of {error.name} failed ({error})"
        return Check(name, "error", text, str(ErrorCode.DEPENDENCY_MISSING))
    except Exception as error:
        # Whatever a checkpoint's own code raises is a finding too.
        return Check(name, "error", f"{type(error).__name__}: {error}", str(ErrorCode.INTERNAL))
