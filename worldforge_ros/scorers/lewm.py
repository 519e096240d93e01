"""LeWorldModel as a scorer: every candidate's predicted future against a picture of the goal.

The architecture comes from a strict schema (``architecture.py``), the weights from plain tensors;
nothing in a checkpoint can run code. The one exception, an ``_object.ckpt``, is a pickle: it is
loaded by stable-worldmodel itself and only when its hash is the configured one.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from worldforge_ros.bridges.world_model import ActionBridge
from worldforge_ros.checkpoints import torch_device
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import ImageArray, Observation, check_goal, check_image
from worldforge_ros.scorers import objectives
from worldforge_ros.scorers.architecture import build_lewm, fit_names, picture_size
from worldforge_ros.scorers.base import Scores, scores_of
from worldforge_ros.scorers.checkpoint import (
    OBJECT_SUFFIX,
    Checkpoint,
    check_hash,
    find_checkpoint,
    read_json,
    read_weights,
)
from worldforge_ros.scorers.contract import (
    ActionSpace,
    camera_image,
    check_scene,
    choose_objective,
    model_actions,
)
from worldforge_ros.scorers.encoders import PIXEL_MEAN, PIXEL_STD, height_width
from worldforge_ros.scorers.engines import (
    BACKENDS,
    PRECISIONS,
    Engine,
    LatentEngine,
    OpenVinoEnds,
    Pixels,
    TorchEnds,
    UpstreamEngine,
)
from worldforge_ros.scorers.rollout import Rollout

FloatArray = npt.NDArray[np.float64]

CARD = "preprocessing.json"
MEMORY = 512 * 1024 * 1024
"""Bytes that one pass of the rollout may take by default."""
LEWM_IMAGE_SIZE = 224
"""Side in pixels of the pictures of the published LeWorldModels (arXiv 2603.19312)."""
RESIZE = ("keep", "stretch")
"""What ``resize`` of ``preprocessing.json`` may say of the ratio of height to width; the first is
what is meant where it is left out."""
OBJECT_CHUNK = 256
"""Candidates in a pass of a model whose layers are not known."""


@dataclass(frozen=True)
class LeWMOptions:
    """How to run a checkpoint.

    ``root`` takes the place of ``STABLEWM_HOME``; ``sha256`` pins the weights and is what an object
    checkpoint needs. ``backend`` is one of :data:`~worldforge_ros.scorers.engines.BACKENDS`, empty
    takes ``torch``, or ``upstream`` for an object. ``precision`` ``bfloat16`` is faster and can
    change which candidate is best. ``objective`` is the one that a request leaves open, empty takes
    the checkpoint's own. ``memory`` in bytes bounds one pass of the rollout.
    """

    device: str = "cpu"
    threads: int = 1
    root: str = ""
    sha256: str = ""
    backend: str = ""
    precision: str = "float32"
    objective: str = ""
    memory: int = MEMORY

    def __post_init__(self) -> None:
        for name, low in (("threads", 1), ("memory", 1)):
            if getattr(self, name) < low:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    name,
                    found=getattr(self, name),
                    expected=f"{low} or more",
                )
        for name, known in (("backend", ("", *BACKENDS)), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    name,
                    found=f"'{getattr(self, name)}'",
                    expected=f"one of {', '.join(item or 'empty' for item in known)}",
                )
        if self.backend == "openvino" and self.device != "cpu":
            raise mismatch(
                ErrorCode.DEVICE_UNAVAILABLE,
                "device of backend openvino",
                found=f"'{self.device}'",
                expected="cpu",
            )
        if self.backend == "upstream" and self.precision != "float32":
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "precision of backend upstream",
                found=self.precision,
                expected="float32",
            )


@dataclass(frozen=True)
class Preprocessing:
    """What the weights expect of pictures and actions, and what they were made to compare."""

    pixels: Pixels
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    objective: str
    reading: objectives.Reading


class LeWMScorer:
    """A loaded LeWorldModel; see :class:`worldforge_ros.scorers.base.Scorer`."""

    def __init__(
        self,
        engine: Engine,
        preprocessing: Preprocessing,
        embodiment: Embodiment,
        facts: Mapping[str, str],
        model: Any,
    ) -> None:
        self._engine = engine
        self._preprocessing = preprocessing
        self._embodiment = embodiment
        self._facts = dict(facts)
        self._model = model
        self._bridge = ActionBridge.of(
            embodiment, preprocessing.action_mean, preprocessing.action_std
        )

    @property
    def model(self) -> Any:
        """The ``stable_worldmodel.wm.lewm.LeWM`` itself, for training."""
        return self._model

    @property
    def model_id(self) -> str:
        """Name of the run and the first 12 hex digits of the weights' SHA-256."""
        return self._facts["model_id"]

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights file."""
        return self._facts["sha256"]

    @property
    def history(self) -> int:
        """Frames that ``score`` needs, one block apart."""
        return self._embodiment.scoring.history

    @property
    def block(self) -> int:
        """Actions in a block."""
        return self.bridge.block

    @property
    def bridge(self) -> ActionBridge:
        """How set-points become the model's actions, with the checkpoint's statistics."""
        return self._bridge

    @property
    def blocks_are_normalised(self) -> bool:
        """Always: a published LeWorldModel takes nothing else."""
        return True

    @property
    def objectives(self) -> tuple[str, ...]:
        """Objectives of this checkpoint, see :mod:`worldforge_ros.scorers.objectives`."""
        return self._engine.objectives

    @property
    def default_objective(self) -> str:
        """What the empty objective means."""
        return self._preprocessing.objective

    @property
    def facts(self) -> Mapping[str, str]:
        """What the metadata of every answer says of the model itself."""
        return self._facts

    def notice(self, observation: Observation) -> None:
        """Encode the picture of an observation that will probably be scored with.

        :raises WorldForgeError: ``CAMERA_MISSING`` or ``IMAGE_SIZE_MISMATCH``.
        """
        self.notice_goal(camera_image(observation, self._embodiment))

    def notice_goal(self, goal: ImageArray) -> None:
        """Encode a goal that will probably be scored with.

        :raises WorldForgeError: ``IMAGE_SIZE_MISMATCH``.
        """
        check_goal(goal, self._embodiment.scoring.camera, self._embodiment)
        self._engine.remember(goal)

    def score(
        self,
        history: Sequence[Observation],
        goal: ImageArray,
        candidates: npt.ArrayLike,
        action_history: npt.ArrayLike | None = None,
        objective: str = "",
        space: ActionSpace = ActionSpace.EMBODIMENT,
    ) -> Scores:
        """Cost of every candidate (S, H, J), set-points in m or rad, or (S, T, A), blocks of the
        model; everything is checked before the model runs.

        :raises WorldForgeError: ``TENSOR_SHAPE_MISMATCH``, ``NO_CANDIDATES``,
            ``ACTION_DIM_MISMATCH``, ``HORIZON_NOT_WHOLE_BLOCKS``, ``TENSOR_NOT_FINITE``,
            ``HISTORY_TOO_SHORT``, ``CAMERA_MISSING``, ``IMAGE_SIZE_MISMATCH``,
            ``ACTION_HISTORY_INVALID``, ``OBJECTIVE_UNKNOWN``, or ``COSTS_INVALID`` when no cost is
            finite.
        """
        check_scene(history, goal, self.history, self._embodiment)
        past, blocks = model_actions(self.bridge, history, candidates, action_history, space)
        chosen = choose_objective(objective, self.default_objective, self.objectives, self.model_id)
        camera = self._embodiment.scoring.camera
        frames = [item.images[camera] for item in history]
        started = time.perf_counter()
        raw, cached = self._engine.costs(frames, goal, past, blocks, chosen)
        latency = time.perf_counter() - started
        height, width = height_width(self._preprocessing.pixels.size)
        details = {
            "objective": chosen,
            "score_type": objectives.score_type(chosen, self._preprocessing.reading),
            "image": f"{width}x{height}",
            **cached,
            "model_latency_s": f"{latency:.6f}",
        }
        return scores_of(self._facts, raw, candidates, blocks, space, details)

    def seen_cost(self, seen: Observation, goal: ImageArray, objective: str = "") -> float | None:
        """See :meth:`worldforge_ros.scorers.base.Scorer.seen_cost`."""
        image = camera_image(seen, self._embodiment)
        for picture in (image, goal):
            check_image(picture, self._embodiment.scoring.camera, self._embodiment)
        chosen = choose_objective(objective, self.default_objective, self.objectives, self.model_id)
        if not isinstance(self._engine, LatentEngine):
            return None
        return self._engine.seen_cost(image, goal, chosen)

    def embed(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Embeddings (N, D) of camera pictures (N, height, width, 3) uint8."""
        return self._latents().embed(images)

    def predict_batch(self, context: Tensor, blocks: Tensor) -> Tensor:
        """Embeddings (S, T - n + 1, D) ahead, from frames (S, n, D) and blocks (S, T, A)."""
        device = next(self._model.parameters()).device
        return Rollout(self._model).batch(context.to(device), blocks.to(device))

    def _latents(self) -> LatentEngine:
        if not isinstance(self._engine, LatentEngine):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"backend of {self.model_id}",
                found=self._engine.runtime,
                expected="torch or openvino, which give embeddings",
            )
        return self._engine


def load_lewm(
    name: str | Path, embodiment: Embodiment, options: LeWMOptions | None = None
) -> LeWMScorer:
    """Load a checkpoint: a folder, a weights file, a run name, see
    :func:`~worldforge_ros.scorers.checkpoint.find_checkpoint`.

    ``preprocessing.json`` beside the weights says what they do not. Without it the pictures are as
    LeWorldModel's own, the objective is ``l2``, and the statistics of the actions have to stand in
    the embodiment file. The whole picture is resized, neither padded nor cut; a camera whose
    pictures have another ratio of height to width than the weights' is refused unless
    ``preprocessing.json`` says ``"resize": "stretch"``, because they were trained on pictures
    stretched so. The number of threads is set for the whole process, as torch knows no other way.

    :raises WorldForgeError: ``CHECKPOINT_MISSING``, ``CHECKPOINT_INVALID``,
        ``CHECKPOINT_UNTRUSTED``, ``ACTION_STATISTICS_MISSING``, ``EMBODIMENT_MISMATCH``,
        ``DEVICE_UNAVAILABLE``, ``OBJECTIVE_UNKNOWN`` or ``DEPENDENCY_MISSING``.
    """
    chosen = options or LeWMOptions()
    checkpoint = find_checkpoint(str(name), chosen.root)
    place = torch_device(chosen.device)
    torch.set_num_threads(chosen.threads)
    card = checkpoint.folder / CARD
    document = read_json(card) if card.is_file() else None
    config: dict[str, Any] | None = None
    if checkpoint.kind == "object":
        content = checkpoint.weights.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        check_hash(checkpoint, sha256, chosen.sha256)
        model = _load_object(checkpoint, content)
    else:
        config = read_json(checkpoint.folder / "config.json")
        state, sha256 = read_weights(
            checkpoint.weights, lambda found: check_hash(checkpoint, found, chosen.sha256)
        )
        model = build_lewm(config)
        _load_state(model, fit_names(state, model.state_dict().keys()), checkpoint.weights)
    preprocessing = _preprocessing(document, config, checkpoint, embodiment)
    _check_embodiment(model, document, config, embodiment)
    model.to(place).eval().requires_grad_(False)
    engine = _engine(model, checkpoint, preprocessing, chosen, place)
    objective = chosen.objective or preprocessing.objective
    if objective not in engine.objectives:
        raise mismatch(
            ErrorCode.OBJECTIVE_UNKNOWN,
            "objective" if chosen.objective else f"objective of {CARD}",
            found=f"'{objective}'",
            expected=f"one of {', '.join(engine.objectives)} ({engine.runtime})",
        )
    facts = {
        "model_id": f"{checkpoint.name}-{sha256[:12]}",
        "sha256": sha256,
        "family": "lewm",
        "runtime": engine.runtime,
        "checkpoint_format": checkpoint.kind,
        "device": str(place),
        "threads": str(chosen.threads),
        "precision": chosen.precision,
    }
    preprocessing = replace(preprocessing, objective=objective)
    return LeWMScorer(engine, preprocessing, embodiment, facts, model)


def _engine(
    model: Any,
    checkpoint: Checkpoint,
    preprocessing: Preprocessing,
    options: LeWMOptions,
    place: torch.device,
) -> Engine:
    native = checkpoint.kind == "object"
    pixels, reading = preprocessing.pixels, preprocessing.reading
    backend = options.backend or ("upstream" if native else "torch")
    if native and backend != "upstream":
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "backend of an object checkpoint",
            found=backend,
            expected="upstream: only its own code can run it",
        )
    if backend == "upstream":
        return UpstreamEngine(model, pixels, place, lambda blocks: OBJECT_CHUNK)
    dim = int(model.predictor.input_dim)
    probe = _beside(
        checkpoint.folder / objectives.PROBE_FILE, lambda: objectives.pose_probe(dim, reading)
    )
    steps = _beside(checkpoint.folder / objectives.STEPS_FILE, lambda: objectives.StepsHead(dim))
    for module in (probe, steps):
        if module is not None:
            module.to(place).eval().requires_grad_(False)
    rollout = Rollout(model)
    return LatentEngine(
        model,
        OpenVinoEnds(model, options.precision, options.threads)
        if backend == "openvino"
        else TorchEnds(model, options.precision, place),
        objectives.costs(probe, steps, reading),
        pixels,
        place,
        lambda blocks: rollout.candidates_in(options.memory, blocks),
        f"{backend} rollout",
    )


def _load_object(checkpoint: Checkpoint, content: bytes) -> Any:
    """The model in a pickle, of exactly these bytes, which were hashed."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="ale-py not found")
            from stable_worldmodel.policy import AutoCostModel
    except ImportError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            "stable_worldmodel.policy.AutoCostModel",
            found=f"not there ({error})",
            expected="stable-worldmodel up to 0.1.1 for object checkpoints; "
            "newer ones are config.json and weights",
        ) from error
    try:
        # A folder of our own: upstream looks for the file by rules of its own, and must not find
        # another one than that which was hashed.
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            run.with_name(f"run{OBJECT_SUFFIX}").write_bytes(content)
            return AutoCostModel(str(run))
    except ImportError as error:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            f"python module {error.name}, which {checkpoint.weights} was pickled with",
            found=f"absent ({error})",
            expected="on the path (le-wm's own jepa.py and module.py for older runs)",
        ) from error
    except (Exception, SystemExit) as error:
        # A pickle runs its own code, and so may raise anything.
        text = " ".join(str(error).split())[:300]
        raise _invalid(
            str(checkpoint.weights),
            f"not loadable ({type(error).__name__}: {text})",
            "an object with get_cost, pickled with these versions of its libraries",
        ) from error


def _beside(path: Path, make: Callable[[], nn.Module]) -> nn.Module | None:
    """A module whose weights may lie beside the model's."""
    if not path.is_file():
        return None
    state, _ = read_weights(path)
    module = make()
    _load_state(module, state, path)
    return module


def _invalid(field: str, found: object, expected: str) -> WorldForgeError:
    return mismatch(ErrorCode.CHECKPOINT_INVALID, field, found=repr(found), expected=expected)


def _load_state(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise _invalid(str(path), text[:300], "exactly the tensors of config.json") from error


def _numbers(
    document: Mapping[str, Any], key: str, count: int, fits: Callable[[float], bool]
) -> tuple[float, ...]:
    value = document.get(key)
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(isinstance(v, int | float) and np.isfinite(v) and fits(v) for v in value)
    ):
        raise _invalid(f"preprocessing.{key}", value, f"{count} suitable finite numbers")
    return tuple(float(item) for item in value)


def _preprocessing(
    document: Mapping[str, Any] | None,
    config: Mapping[str, Any] | None,
    checkpoint: Checkpoint,
    embodiment: Embodiment,
) -> Preprocessing:
    card: Mapping[str, Any] = document or {}
    joints = len(embodiment.joints)
    action = embodiment.scoring.action
    mean, std = card.get("action_mean"), card.get("action_std")
    if mean is None and std is None and action.mean is not None and action.std is not None:
        means, stds = action.mean, action.std
    elif mean is None or std is None:
        raise mismatch(
            ErrorCode.ACTION_STATISTICS_MISSING,
            f"action_mean and action_std in {checkpoint.folder / CARD}",
            found=f"{mean} and {std}" if document is not None else "without that file",
            expected=f"{joints} numbers each, there or in embodiment {embodiment.name}",
        )
    else:
        if isinstance(mean, list) and len(mean) != joints:
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                "preprocessing.action_mean",
                found=f"{len(mean)} numbers",
                expected=f"{joints}, the joints of embodiment {embodiment.name}",
            )
        means = _numbers(card, "action_mean", joints, lambda item: True)
        stds = _numbers(card, "action_std", joints, lambda item: item > 0)
    own = dict(config["encoder"]) if config is not None else {}
    own_size = own.get("image_size", LEWM_IMAGE_SIZE)
    wanted = own_size if document is None else card.get("image_size")
    if config is not None and wanted != own_size:
        raise _invalid("preprocessing.image_size", wanted, f"config.encoder.image_size {own_size}")
    size = picture_size(wanted, "preprocessing.image_size")
    if not all(8 <= side <= 2048 for side in height_width(size)):
        raise _invalid("preprocessing.image_size", wanted, "8 to 2048 pixels a side")
    _check_ratio(card.get("resize", RESIZE[0]), height_width(size), embodiment)
    if document is None:
        pixels = Pixels(size, PIXEL_MEAN, PIXEL_STD)
        return Preprocessing(pixels, means, stds, "l2", objectives.PUSHT_READING)
    pixels = Pixels(
        size,
        _numbers(card, "pixel_mean", 3, lambda item: True),
        _numbers(card, "pixel_std", 3, lambda item: item > 0),
    )
    points = card.get("points")
    reading = objectives.PUSHT_READING if points is None else objectives.Reading.parse(points)
    return Preprocessing(pixels, means, stds, str(card.get("objective", "l2")), reading)


def _check_ratio(resize: object, size: tuple[int, int], embodiment: Embodiment) -> None:
    """Refuse to stretch pictures that the weights have not seen stretched."""
    if resize not in RESIZE:
        raise _invalid("preprocessing.resize", resize, f"one of {', '.join(RESIZE)}")
    camera = embodiment.cameras[embodiment.scoring.camera]
    height, width = size
    if resize == RESIZE[0] and camera.height * width != camera.width * height:
        raise mismatch(
            ErrorCode.EMBODIMENT_MISMATCH,
            "preprocessing.image_size",
            found=f"{height} x {width} (height x width)",
            expected=f"the ratio of {camera.height} x {camera.width} of camera {camera.name}, or "
            f"preprocessing.resize '{RESIZE[1]}' if the weights saw pictures stretched so",
        )


def _check_embodiment(
    model: Any,
    document: Mapping[str, Any] | None,
    config: Mapping[str, Any] | None,
    embodiment: Embodiment,
) -> None:
    spec = embodiment.scoring
    pairs: list[tuple[str, object, object]] = []
    if document is not None:
        pairs = [
            ("block", document.get("block"), spec.block),
            ("step", document.get("step"), spec.step),
            ("action_meaning", document.get("action_meaning"), spec.action.meaning),
            ("action_scale", document.get("action_scale"), list(spec.action.scale)),
        ]
    for name, found, expected in pairs:
        if found != expected:
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                f"preprocessing.{name}",
                found=found,
                expected=f"{expected} of embodiment {embodiment.name}",
            )
    needed = spec.block * len(embodiment.joints)
    if config is not None and config["action_encoder"]["input_dim"] != needed:
        raise mismatch(
            ErrorCode.EMBODIMENT_MISMATCH,
            "config.action_encoder.input_dim",
            found=config["action_encoder"]["input_dim"],
            expected=f"{needed} = {spec.block} actions of {len(embodiment.joints)} joints",
        )
    frames = getattr(getattr(model, "predictor", None), "num_frames", None)
    if frames is not None and spec.history > int(frames):
        raise mismatch(
            ErrorCode.EMBODIMENT_MISMATCH,
            f"world_model.history of embodiment {embodiment.name}",
            found=spec.history,
            expected=f"at most the predictor's {int(frames)} frames",
        )
