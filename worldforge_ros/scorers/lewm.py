"""LeWorldModel as a scorer: every candidate's predicted future against a picture of the goal.

The architecture comes from a strict schema (``architecture.py``), the weights from
``model.safetensors`` or from ``weights.pt`` with ``weights_only=True``; nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from worldforge_ros.observation import ImageArray, Observation, check_image, check_window
from worldforge_ros.scorers import objectives
from worldforge_ros.scorers.architecture import build_lewm
from worldforge_ros.scorers.base import Scores
from worldforge_ros.scorers.encoders import normalise_pixels, resize_pixels
from worldforge_ros.scorers.objectives import Cost
from worldforge_ros.scorers.rollout import Rollout

FloatArray = npt.NDArray[np.float64]

CHUNK = 1024
"""Candidates in one predictor pass: bounds the memory of large requests."""
EMBEDDINGS_KEPT = 8
"""Pictures whose embeddings are kept, by content: a goal and a search's frames come again."""


@dataclass(frozen=True)
class Preprocessing:
    """``preprocessing.json``: what the weights expect of pictures and actions."""

    image_size: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    objective: str


class LeWMScorer:
    """A loaded LeWorldModel; see :class:`worldforge_ros.scorers.base.Scorer`."""

    def __init__(
        self,
        model: Any,
        costs: Mapping[str, Cost],
        preprocessing: Preprocessing,
        embodiment: Embodiment,
        device: torch.device,
        model_id: str,
        sha256: str,
    ) -> None:
        self._model = model
        self._rollout = Rollout(model)
        self._costs = costs
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._preprocessing = preprocessing
        self._embodiment = embodiment
        self._device = device
        self._model_id = model_id
        self._sha256 = sha256
        self._bridge = ActionBridge.of(
            embodiment, preprocessing.action_mean, preprocessing.action_std
        )

    @property
    def model(self) -> Any:
        """The ``stable_worldmodel.wm.lewm.LeWM`` itself, for training."""
        return self._model

    @property
    def model_id(self) -> str:
        """Folder name and the first 12 hex digits of the weights' SHA-256."""
        return self._model_id

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights file."""
        return self._sha256

    @property
    def history(self) -> int:
        """Frames that ``score`` needs, one block apart."""
        return self._embodiment.world_model.history

    @property
    def block(self) -> int:
        """Actions in a block."""
        return self.bridge.block

    @property
    def bridge(self) -> ActionBridge:
        """How set-points become the model's actions, with the checkpoint's statistics."""
        return self._bridge

    @property
    def objectives(self) -> tuple[str, ...]:
        """Objectives of this checkpoint, see :mod:`worldforge_ros.scorers.objectives`."""
        return tuple(self._costs)

    @property
    def default_objective(self) -> str:
        """What the empty objective means."""
        return self._preprocessing.objective

    def score(
        self,
        history: Sequence[Observation],
        goal: ImageArray,
        candidates: npt.ArrayLike,
        action_history: npt.ArrayLike | None = None,
        objective: str = "",
    ) -> Scores:
        """Cost of every candidate (S, H, J) of set-points in m or rad; everything is checked first.

        :raises WorldForgeError: ``TENSOR_SHAPE_MISMATCH``, ``NO_CANDIDATES``,
            ``ACTION_DIM_MISMATCH``, ``HORIZON_NOT_WHOLE_BLOCKS``, ``TENSOR_NOT_FINITE``,
            ``HISTORY_TOO_SHORT``, ``IMAGE_SIZE_MISMATCH``, ``ACTION_HISTORY_INVALID``,
            ``OBJECTIVE_UNKNOWN``, or ``COSTS_INVALID`` when no cost is finite.
        """
        setpoints = _checked("candidates", candidates, self.bridge.joints)
        self._check_pictures(history, goal)
        past = self._past_blocks(history, action_history)
        now = history[-1]
        blocks = self.bridge.setpoints_to_blocks(setpoints, now.position, now.velocity)
        return self._score(history, goal, past, blocks, self._objective(objective))

    def score_blocks(
        self,
        history: Sequence[Observation],
        goal: ImageArray,
        blocks: npt.ArrayLike,
        objective: str = "",
        action_history: npt.ArrayLike | None = None,
    ) -> Scores:
        """As :meth:`score` for candidates (S, T, block * J) that already are model blocks."""
        values = _checked("blocks", blocks, self.block * self.bridge.joints)
        self._check_pictures(history, goal)
        past = self._past_blocks(history, action_history)
        return self._score(history, goal, past, values, self._objective(objective))

    def embed(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Embeddings (N, D) of camera pictures (N, height, width, 3) uint8."""
        spec = self._preprocessing
        small = torch.from_numpy(resize_pixels(images, spec.image_size)).to(self._device)
        pixels = normalise_pixels(small, spec.pixel_mean, spec.pixel_std)
        embedding: Tensor = self._model.encode({"pixels": pixels[None]})["emb"][0]
        return embedding

    def predict_batch(self, context: Tensor, blocks: Tensor) -> Tensor:
        """Embeddings (S, T - n + 1, D) ahead, from frames (S, n, D) and blocks (S, T, A)."""
        return self._rollout.batch(context.to(self._device), blocks.to(self._device))

    def _embedding(self, image: ImageArray) -> tuple[Tensor, bool]:
        """Embedding (D,) of one picture, and whether it was kept from before."""
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        known = self._kept.get(digest)
        if known is None:
            found = self.embed(image[np.newaxis])[0]
            self._kept[digest] = found
            if len(self._kept) > EMBEDDINGS_KEPT:
                self._kept.popitem(last=False)
            return found, False
        self._kept.move_to_end(digest)
        return known, True

    def _objective(self, name: str) -> str:
        chosen = name or self.default_objective
        if chosen not in self.objectives:
            raise mismatch(
                ErrorCode.OBJECTIVE_UNKNOWN,
                "objective",
                found=f"'{name}'",
                expected=f"empty or one of {', '.join(self.objectives)} for {self.model_id}",
            )
        return chosen

    def _check_pictures(self, history: Sequence[Observation], goal: ImageArray) -> None:
        embodiment = self._embodiment
        spec = embodiment.world_model
        check_window(history, self.history, spec.block_duration, embodiment.observation.tolerance)
        for item in history:
            if spec.camera not in item.images:
                raise mismatch(
                    ErrorCode.CAMERA_MISSING,
                    "observation",
                    found=f"with cameras {sorted(item.images)}",
                    expected=f"camera '{spec.camera}'",
                )
            check_image(item.images[spec.camera], spec.camera, embodiment)
            for field, values in (("position", item.position), ("velocity", item.velocity)):
                if np.shape(values) != (self.bridge.joints,) or not np.isfinite(values).all():
                    raise mismatch(
                        ErrorCode.TENSOR_NOT_FINITE,
                        f"observation {field}",
                        found=np.asarray(values).tolist(),
                        expected=f"{self.bridge.joints} finite numbers",
                    )
        check_image(goal, spec.camera, embodiment)

    def _past_blocks(
        self, history: Sequence[Observation], action_history: npt.ArrayLike | None
    ) -> FloatArray:
        """Blocks (history - 1, block * J) executed between the frames."""
        joints, block = self.bridge.joints, self.block
        values = np.asarray([] if action_history is None else action_history, dtype=np.float64)
        expected = ((self.history - 1) * block, joints)
        empty = values.size == 0 and expected[0] == 0
        if not empty and values.shape != expected:
            raise mismatch(
                ErrorCode.ACTION_HISTORY_INVALID,
                "action_history",
                found=f"shape {values.shape}",
                expected=f"{expected}: the set-points between {self.history} frames",
            )
        if not np.isfinite(values).all():
            raise mismatch(
                ErrorCode.ACTION_HISTORY_INVALID,
                "action_history",
                found="with NaN or infinity",
                expected="finite set-points",
            )
        between = zip(history[:-1], values.reshape(-1, block, joints), strict=True)
        blocks = [
            self.bridge.setpoints_to_blocks(part, item.position, item.velocity)
            for item, part in between
        ]
        return np.concatenate([np.empty((0, block * joints)), *blocks])

    def _score(
        self,
        history: Sequence[Observation],
        goal: ImageArray,
        past: FloatArray,
        blocks: FloatArray,
        objective: str,
    ) -> Scores:
        started = time.perf_counter()
        camera = self._embodiment.world_model.camera
        pictures = [*(item.images[camera] for item in history), goal]
        with torch.inference_mode():
            embeddings = [self._embedding(picture) for picture in pictures]
            context = torch.stack([embedding for embedding, _ in embeddings[:-1]])
            target = embeddings[-1][0]
            costs = [
                self._costs[objective](self._ends(context, past, part), target)
                for part in np.split(blocks, range(CHUNK, len(blocks), CHUNK))
            ]
            values = torch.cat(costs).float().cpu().numpy().astype(np.float32)
        latency = time.perf_counter() - started
        values[~np.isfinite(values)] = np.nan
        if np.isnan(values).all():
            raise mismatch(
                ErrorCode.COSTS_INVALID,
                f"costs of {self.model_id}",
                found=f"not finite for all {len(values)} candidates",
                expected="at least one finite cost",
            )
        metadata = {
            "model_id": self.model_id,
            "sha256": self.sha256,
            "objective": objective,
            "device": str(self._device),
            "blocks": "x".join(str(size) for size in blocks.shape),
            "image": f"{self._preprocessing.image_size}x{self._preprocessing.image_size}",
            "pictures_cached": f"{sum(kept for _, kept in embeddings)} of {len(embeddings)}",
            "model_latency_s": f"{latency:.6f}",
        }
        return Scores(costs=values, best_index=int(np.nanargmin(values)), metadata=metadata)

    def _ends(self, context: Tensor, past: FloatArray, blocks: FloatArray) -> Tensor:
        """Last predicted embedding (S, D) after all blocks (S, T, A), from frames (n, D)."""
        before = np.broadcast_to(past, (len(blocks), *past.shape))
        actions = torch.from_numpy(np.concatenate([before, blocks], axis=1)).float()
        return self._rollout(context, actions.to(self._device))[:, -1]


def _checked(name: str, values: npt.ArrayLike, width: int) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 3:
        raise mismatch(
            ErrorCode.TENSOR_SHAPE_MISMATCH,
            name,
            found=f"shape {array.shape}",
            expected="(candidates, horizon, joints)",
        )
    if array.shape[0] < 1:
        raise mismatch(ErrorCode.NO_CANDIDATES, name, found="empty", expected="at least one")
    if array.shape[2] != width:
        raise mismatch(
            ErrorCode.ACTION_DIM_MISMATCH,
            f"last dimension of {name}",
            found=array.shape[2],
            expected=width,
        )
    if array.shape[1] < 1:
        raise mismatch(
            ErrorCode.HORIZON_NOT_WHOLE_BLOCKS,
            f"horizon of {name}",
            found=0,
            expected="1 block or more",
        )
    if not np.isfinite(array).all():
        raise mismatch(
            ErrorCode.TENSOR_NOT_FINITE,
            name,
            found="with NaN or infinity",
            expected="finite numbers",
        )
    return array


def load_lewm(
    path: str | Path, embodiment: Embodiment, device: str = "cpu", threads: int = 1
) -> LeWMScorer:
    """Load a checkpoint folder: ``config.json``, weights, ``preprocessing.json``, and beside them
    what objectives need.

    ``threads`` is set for the whole process, as torch knows no other way.

    :raises WorldForgeError: ``CHECKPOINT_MISSING``, ``CHECKPOINT_INVALID``,
        ``ACTION_STATISTICS_MISSING``, ``EMBODIMENT_MISMATCH``, ``DEVICE_UNAVAILABLE``,
        ``INVALID_ARGUMENT`` or ``DEPENDENCY_MISSING``.
    """
    if threads < 1:
        raise mismatch(ErrorCode.INVALID_ARGUMENT, "threads", found=threads, expected="1 or more")
    place = torch_device(device)
    folder = Path(path).expanduser()
    config = _read_json(folder / "config.json")
    document = _read_json(folder / "preprocessing.json")
    weights = folder / "model.safetensors"
    if not weights.is_file() and (folder / "weights.pt").is_file():
        weights = folder / "weights.pt"
    state, sha256 = _read_weights(weights)
    preprocessing = _preprocessing(document, folder, embodiment)
    model = build_lewm(config)
    _check_embodiment(model, document, config, preprocessing, embodiment)
    _load_state(model, state, weights)
    dim = int(config["predictor"]["input_dim"])
    probe = _beside(folder / objectives.PROBE_FILE, lambda: objectives.pose_probe(dim))
    steps = _beside(folder / objectives.STEPS_FILE, lambda: objectives.StepsHead(dim))
    torch.set_num_threads(threads)
    for module in (model, probe, steps):
        if module is not None:
            module.to(place).eval().requires_grad_(False)
    costs = objectives.costs(probe, steps)
    if preprocessing.objective not in costs:
        raise _invalid("preprocessing.objective", preprocessing.objective, " or ".join(costs))
    return LeWMScorer(
        model=model,
        costs=costs,
        preprocessing=preprocessing,
        embodiment=embodiment,
        device=place,
        model_id=f"{folder.resolve().name}-{sha256[:12]}",
        sha256=sha256,
    )


def _beside(path: Path, make: Callable[[], nn.Module]) -> nn.Module | None:
    """A module whose weights may lie beside the model's."""
    if not path.is_file():
        return None
    state, _ = _read_weights(path)
    module = make()
    _load_state(module, state, path)
    return module


def _invalid(field: str, found: object, expected: str) -> WorldForgeError:
    return mismatch(ErrorCode.CHECKPOINT_INVALID, field, found=repr(found), expected=expected)


def _present(path: Path) -> None:
    if not path.is_file():
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            "world-model checkpoint",
            found=f"without {path}",
            expected="that file",
        )


def _read_json(path: Path) -> dict[str, Any]:
    _present(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _invalid(str(path), f"not JSON ({error})", "a JSON object") from error
    if not isinstance(document, dict):
        raise _invalid(str(path), type(document).__name__, "a JSON object")
    return document


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    _present(path)
    content = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load

            try:
                state: Any = load(content)
            except SafetensorError as error:
                raise _invalid(str(path), str(error), "a safetensors file") from error
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        first = (str(error) or "nothing readable").splitlines()[0]
        raise _invalid(str(path), first, "plain tensors") from error
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise _invalid(str(path), type(state).__name__, "a mapping of names to tensors")
    return dict(state), hashlib.sha256(content).hexdigest()


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
    document: Mapping[str, Any], folder: Path, embodiment: Embodiment
) -> Preprocessing:
    joints = len(embodiment.joints)
    action = embodiment.world_model.action
    mean, std = document.get("action_mean"), document.get("action_std")
    if mean is None and std is None and action.mean is not None and action.std is not None:
        means, stds = action.mean, action.std
    elif mean is None or std is None:
        raise mismatch(
            ErrorCode.ACTION_STATISTICS_MISSING,
            f"action_mean and action_std in {folder / 'preprocessing.json'}",
            found=f"{mean} and {std}",
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
        means = _numbers(document, "action_mean", joints, lambda item: True)
        stds = _numbers(document, "action_std", joints, lambda item: item > 0)
    size = document.get("image_size")
    if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 2048:
        raise _invalid("preprocessing.image_size", size, "a whole number from 8 to 2048")
    return Preprocessing(
        image_size=size,
        pixel_mean=_numbers(document, "pixel_mean", 3, lambda item: True),
        pixel_std=_numbers(document, "pixel_std", 3, lambda item: item > 0),
        action_mean=means,
        action_std=stds,
        objective=str(document.get("objective", "l2")),
    )


def _check_embodiment(
    model: Any,
    document: Mapping[str, Any],
    config: Mapping[str, Any],
    preprocessing: Preprocessing,
    embodiment: Embodiment,
) -> None:
    spec = embodiment.world_model
    pairs: list[tuple[str, object, object]] = [
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
    width = int(config["action_encoder"]["input_dim"])
    needed = spec.block * len(embodiment.joints)
    if width != needed:
        raise mismatch(
            ErrorCode.EMBODIMENT_MISMATCH,
            "config.action_encoder.input_dim",
            found=width,
            expected=f"{needed} = {spec.block} actions of {len(embodiment.joints)} joints",
        )
    if spec.history > int(model.predictor.num_frames):
        raise mismatch(
            ErrorCode.EMBODIMENT_MISMATCH,
            f"world_model.history of embodiment {embodiment.name}",
            found=spec.history,
            expected=f"at most the predictor's {int(model.predictor.num_frames)} frames",
        )
    if preprocessing.image_size != int(config["encoder"]["image_size"]):
        raise _invalid(
            "preprocessing.image_size", preprocessing.image_size, "config.encoder.image_size"
        )
