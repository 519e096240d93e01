"""JEPA-WMS (github.com/facebookresearch/jepa-wms) as a scorer.

What the interface wants, read from its ``EncPredWM`` (``vit_enc_preds.py``) and ``hubconf.py``:
pictures (batch, time, 3, height, width) from 0 to 255, joint state in the units of its statistics,
actions time-first (T, S, A) and normalised per action of the environment; ``unroll`` returns the
context and the prediction, (n + T, S, ...), so the last one counts.
"""

from __future__ import annotations

import hashlib
import inspect
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldforge_ros.bridges.world_model import ActionBridge
from worldforge_ros.checkpoints import torch_device
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import ImageArray, Observation, check_goal, check_image
from worldforge_ros.scorers.base import Scores, scores_of
from worldforge_ros.scorers.contract import (
    ActionSpace,
    camera_image,
    check_scene,
    choose_objective,
    model_actions,
)
from worldforge_ros.scorers.engines import as_numpy
from worldforge_ros.scorers.hub import Family, hub_pair, parameters_sha256

FloatArray = npt.NDArray[np.float64]

LICENCE = (
    "the JEPA-WMS weights and code are under CC BY-NC 4.0: not for commercial use "
    "(github.com/facebookresearch/jepa-wms/blob/main/LICENSE)"
)
NATIVE = ("score_actions", "score_action_candidates", "compute_scores")
"""Scoring methods of a runtime, the first that is there is used.

Each is called with the keywords ``observation`` and ``goal`` (the arguments of ``encode``),
``actions`` (1, S, T, A) normalised and, where it takes them, ``action_history`` (1, n - 1, A) and
``objective``. It returns costs, or a mapping with ``scores`` and perhaps ``best_index``, or
``{"error": {"type": ..., "message": ...}}``.
"""
OBJECTIVES = ("l2", "l1")
LATENTS_KEPT = 8
"""Encoded windows and goals; unlike LeWorldModel's they are hundreds of kB each."""
FAMILY = Family("JEPA-WMS", "github.com/facebookresearch/jepa-wms")

Loader = Callable[["JepaOptions"], tuple[Any, Any]]
"""Loads the model and its preprocessor."""


@dataclass(frozen=True)
class JepaOptions:
    """What to load and how to compare.

    ``model`` is a name of ``hubconf.py``, such as ``jepa_wm_pusht``. ``repository`` is a folder
    with a copy of the repository, or ``owner/name:commit``; loading runs its code, which
    ``trust_repository`` has to allow. ``proprio_weight`` is that of the joint state in the cost
    (0.1 upstream for PushT) against ``goal_proprio`` in the model's units.
    ``actions_are_normalized`` says of candidates in model space whether they are; otherwise the
    preprocessor does it here. ``chunk`` candidates are unrolled at a time.
    """

    model: str
    repository: str
    trust_repository: bool = False
    device: str = "cpu"
    threads: int = 1
    objective: str = "l2"
    proprio_weight: float = 0.1
    goal_proprio: tuple[float, ...] = ()
    actions_are_normalized: bool = True
    chunk: int = 32

    def __post_init__(self) -> None:
        for name in ("trust_repository", "actions_are_normalized"):
            if not isinstance(getattr(self, name), bool):
                raise _argument(name, repr(getattr(self, name)), "true or false")
        for name in ("threads", "chunk"):
            if getattr(self, name) < 1:
                raise _argument(name, getattr(self, name), "1 or more")
        if self.objective not in OBJECTIVES:
            raise mismatch(
                ErrorCode.OBJECTIVE_UNKNOWN,
                "objective",
                found=f"'{self.objective}'",
                expected=f"one of {', '.join(OBJECTIVES)}",
            )
        if not np.isfinite(self.proprio_weight) or self.proprio_weight < 0:
            raise _argument("proprio_weight", self.proprio_weight, "0 or more")
        if not np.isfinite(self.goal_proprio).all():
            raise _argument("goal_proprio", list(self.goal_proprio), "finite numbers")


def _argument(name: str, found: object, expected: str) -> WorldForgeError:
    return mismatch(ErrorCode.INVALID_ARGUMENT, name, found=found, expected=expected)


def load_from_hub(options: JepaOptions) -> tuple[Any, Any]:
    """The model and its preprocessor through ``torch.hub``.

    :raises WorldForgeError: ``CHECKPOINT_UNTRUSTED``, ``CHECKPOINT_MISSING``,
        ``CHECKPOINT_INVALID`` or ``DEPENDENCY_MISSING``.
    """
    if not options.model or not options.repository:
        raise mismatch(
            ErrorCode.CHECKPOINT_MISSING,
            "JEPA-WMS model and repository",
            found=f"'{options.model}' and '{options.repository}'",
            expected="a name of its hubconf.py (JEPA_WMS_MODEL_NAME), and a folder with the "
            "repository or owner/name:commit (JEPA_WMS_MODEL_PATH)",
        )
    return hub_pair(
        FAMILY,
        options.model,
        options.repository,
        options.trust_repository,
        "(model, preprocessor)",
        device=options.device,
    )


class JepaWmsScorer:
    """A loaded JEPA-WMS model; see :class:`worldforge_ros.scorers.base.Scorer`."""

    def __init__(
        self, model: Any, preprocessor: Any, embodiment: Embodiment, options: JepaOptions
    ) -> None:
        self._model = model
        self._preprocessor = preprocessor
        self._embodiment = embodiment
        self._options = options
        self._device = torch.device(options.device)
        self._bridge = ActionBridge.of(
            embodiment, _statistics(preprocessor, "mean"), _statistics(preprocessor, "std")
        )
        self._native = next((name for name in NATIVE if callable(getattr(model, name, None))), None)
        if self._native is None:
            for name in ("encode", "unroll"):
                if not callable(getattr(model, name, None)):
                    raise mismatch(
                        ErrorCode.CHECKPOINT_INVALID,
                        f"JEPA-WMS model {options.model}",
                        found=f"without {name}",
                        expected=f"encode and unroll, or one of {', '.join(NATIVE)}",
                    )
        self._uses_proprio = self._check_proprio()
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        sha256 = parameters_sha256(model)
        name = options.model or type(model).__name__
        self._facts = {
            "model_id": f"{name}-{sha256[:12]}" if sha256 else name,
            "sha256": sha256,
            "family": "jepa_wms",
            "runtime": self._native or "unroll",
            "checkpoint_format": "torch.hub",
            "device": options.device,
            "threads": str(options.threads),
            "precision": "float32",
            "licence": "CC BY-NC 4.0",
        }

    @property
    def model_id(self) -> str:
        """Name of the model and the first 12 hex digits of the SHA-256 of its parameters."""
        return self._facts["model_id"]

    @property
    def facts(self) -> Mapping[str, str]:
        """What the metadata of every answer says of the model itself."""
        return self._facts

    @property
    def history(self) -> int:
        """Frames that ``score`` needs, one block apart."""
        return self._embodiment.scoring.history

    @property
    def block(self) -> int:
        """Actions in a block."""
        return self._bridge.block

    @property
    def bridge(self) -> ActionBridge:
        """How set-points become actions, with the statistics of the preprocessor."""
        return self._bridge

    @property
    def blocks_are_normalised(self) -> bool:
        """Whether candidates in model space are, see :class:`JepaOptions`."""
        return self._options.actions_are_normalized

    @property
    def objectives(self) -> tuple[str, ...]:
        """Distances between the last predicted latent and the goal's."""
        return OBJECTIVES

    def notice(self, observation: Observation) -> None:
        """Encode an observation that will probably be scored with."""
        if self._native is None and self.history == 1:
            check_image(
                camera_image(observation, self._embodiment),
                self._embodiment.scoring.camera,
                self._embodiment,
            )
            with torch.no_grad():
                self._encoded(self._context([observation]))

    def notice_goal(self, goal: ImageArray) -> None:
        """Encode a goal that will probably be scored with."""
        check_goal(goal, self._embodiment.scoring.camera, self._embodiment)
        if self._native is None:
            with torch.no_grad():
                self._encoded(self._goal(goal))

    def score(
        self,
        history: Sequence[Observation],
        goal: ImageArray,
        candidates: npt.ArrayLike,
        action_history: npt.ArrayLike | None = None,
        objective: str = "",
        space: ActionSpace = ActionSpace.EMBODIMENT,
    ) -> Scores:
        """Cost of every candidate; see :class:`worldforge_ros.scorers.base.Scorer`.

        :raises WorldForgeError: what the checks raise, ``MODEL_FAILED`` for an error that the
            runtime reports, ``COSTS_INVALID`` for costs that are none.
        """
        check_scene(history, goal, self.history, self._embodiment)
        past, blocks = model_actions(self._bridge, history, candidates, action_history, space)
        chosen = choose_objective(objective, self._options.objective, OBJECTIVES, self.model_id)
        if space is ActionSpace.MODEL and not self._options.actions_are_normalized:
            past, blocks = self._normalised(past), self._normalised(blocks)
        started = time.perf_counter()
        index: object = None
        with torch.no_grad():
            if self._native is not None:
                raw, index, cached = self._ask(history, goal, past, blocks, chosen)
            else:
                try:
                    raw, cached = self._latent_costs(history, goal, past, blocks, chosen)
                except RuntimeError as error:
                    # torch: shapes that do not fit, a device without memory.
                    raise _failed(self.model_id, type(error).__name__, str(error)) from error
        latency = time.perf_counter() - started
        details = {
            "objective": chosen,
            "score_type": "as the model's own scoring method returns it"
            if self._native
            else f"mean {'squared' if chosen == 'l2' else 'absolute'} difference of latents",
            "proprio_weight": f"{self.proprio_weight:g}",
            **cached,
            "model_latency_s": f"{latency:.6f}",
        }
        return scores_of(self._facts, raw, candidates, blocks, space, details, index)

    def seen_cost(self, seen: Observation, goal: ImageArray, objective: str = "") -> float | None:
        """See :meth:`worldforge_ros.scorers.base.Scorer.seen_cost`."""
        image = camera_image(seen, self._embodiment)
        for picture in (image, goal):
            check_image(picture, self._embodiment.scoring.camera, self._embodiment)
        chosen = choose_objective(objective, self._options.objective, OBJECTIVES, self.model_id)
        if self._native is not None:
            return None
        try:
            with torch.no_grad():
                end, _ = self._encoded(self._context([seen]))
                target, _ = self._encoded(self._goal(goal))
                return float(self._compared(_last(end), target, chosen)[0])
        except RuntimeError as error:
            raise _failed(self.model_id, type(error).__name__, str(error)) from error

    @property
    def shows_latents(self) -> bool:
        """Whether the runtime encodes and unrolls; one with a scoring method of its own does not
        have to.
        """
        return self._native is None

    @property
    def proprio_weight(self) -> float:
        """Weight of the joint state in distances of latents; 0 where the model takes none."""
        return self._options.proprio_weight if self._uses_proprio else 0.0

    def encode_frame(self, observation: Observation) -> Any:
        """Latent (1, 1, ...) of one observation, or a mapping of them with ``visual`` and
        ``proprio``.

        :raises WorldForgeError: ``MODEL_FAILED``.
        """
        try:
            with torch.no_grad():
                return self._model.encode(self._context([observation]))
        except RuntimeError as error:
            raise _failed(self.model_id, type(error).__name__, str(error)) from error

    def unroll_frame(self, latent: Any, blocks: FloatArray) -> Any:
        """Latents (T + 1, 1, ...) from one of :meth:`encode_frame` through blocks (T, A); time
        first, as upstream has it.

        :raises WorldForgeError: ``MODEL_FAILED``.
        """
        actions = torch.from_numpy(np.asarray(blocks)).float()[:, None].to(self._device)
        try:
            with torch.no_grad():
                ahead = self._model.unroll(latent, act_suffix=actions)
        except RuntimeError as error:
            raise _failed(self.model_id, type(error).__name__, str(error)) from error
        if ahead is None:
            raise _failed(self.model_id, "no latents", f"unroll of {type(latent).__name__}")
        return ahead

    def _compared(self, latents: Any, target: Any, objective: str) -> Tensor:
        """Costs (S,) of latents (S, ...) against the goal's."""
        cost = _distance(_visual(latents), _visual(target)[0, -1], objective)
        if self._uses_proprio and self._options.proprio_weight > 0:
            cost = cost + self._options.proprio_weight * _distance(
                latents["proprio"], target["proprio"][0, -1], objective
            )
        return cost

    def _check_proprio(self) -> bool:
        """Whether the model takes the joint state, once everything that this needs is there."""
        spec = self._embodiment.scoring.proprio
        inner = getattr(self._model, "model", self._model)
        wanted = bool(getattr(inner, "use_proprio", getattr(self._model, "use_proprio", False)))
        if not wanted:
            return False
        count = np.size(np.asarray(self._preprocessor.proprio_mean))
        given = 0 if spec is None else len(spec.quantities) * len(self._embodiment.joints)
        if given != count:
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                f"world_model.proprio of embodiment {self._embodiment.name}",
                found=f"{given} numbers",
                expected=f"{count}, what {self._options.model} was trained with",
            )
        goal = self._options.goal_proprio
        if self._options.proprio_weight > 0 and len(goal) != count:
            raise _argument(
                "goal_proprio",
                f"{len(goal)} numbers",
                f"{count} in the model's units, or proprio_weight 0",
            )
        return True

    def _normalised(self, blocks: FloatArray) -> FloatArray:
        joints, block = self._bridge.joints, self._bridge.block
        each = blocks.reshape(*blocks.shape[:-1], block, joints)
        ready = self._preprocessor.normalize_actions(torch.from_numpy(each).float())
        values: FloatArray = np.asarray(ready, dtype=np.float64).reshape(blocks.shape)
        return values

    def _pixels(self, images: Sequence[ImageArray]) -> Tensor:
        """(1, n, 3, height, width) float32 from 0 to 255: the preprocessor's own range."""
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
        return stacked[None].to(self._device)

    def _proprio(self, history: Sequence[Observation]) -> Tensor:
        """(1, n, P) in the model's units."""
        spec = self._embodiment.scoring.proprio
        assert spec is not None
        rows = [
            np.concatenate(
                [
                    np.asarray(getattr(item, name)) * np.asarray(spec.scale)
                    for name in spec.quantities
                ]
            )
            for item in history
        ]
        return torch.from_numpy(np.stack(rows)).float()[None].to(self._device)

    def _context(self, history: Sequence[Observation]) -> Any:
        pixels = self._pixels([camera_image(item, self._embodiment) for item in history])
        if not self._uses_proprio:
            return pixels
        return {"visual": pixels, "proprio": self._proprio(history)}

    def _goal(self, goal: ImageArray) -> Any:
        pixels = self._pixels([goal])
        if not self._uses_proprio:
            return pixels
        # With weight 0 nothing is compared, but the encoder still wants its input.
        count = int(np.size(np.asarray(self._preprocessor.proprio_mean)))
        given = self._options.goal_proprio or (0.0,) * count
        proprio = torch.tensor(given, dtype=torch.float32, device=self._device)
        return {"visual": pixels, "proprio": proprio.expand(1, 1, count)}

    def _encoded(self, scene: Any) -> tuple[Any, bool]:
        """Latents of a context or goal, and whether they were kept from before."""
        digest = hashlib.blake2b(digest_size=16)
        for part in scene.values() if isinstance(scene, Mapping) else (scene,):
            digest.update(part.cpu().contiguous().numpy().tobytes())
            digest.update(str(tuple(part.shape)).encode())
        key = digest.digest()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key], True
        self._kept[key] = self._model.encode(scene)
        if len(self._kept) > LATENTS_KEPT:
            self._kept.popitem(last=False)
        return self._kept[key], False

    def _latent_costs(
        self,
        history: Sequence[Observation],
        goal: ImageArray,
        past: FloatArray,
        blocks: FloatArray,
        objective: str,
    ) -> tuple[object, dict[str, str]]:
        context, kept = self._encoded(self._context(history))
        target, goal_kept = self._encoded(self._goal(goal))
        parts = []
        for start in range(0, len(blocks), self._options.chunk):
            actions = torch.from_numpy(blocks[start : start + self._options.chunk]).float()
            predicted = self._unrolled(context, past, actions.to(self._device))
            parts.append(self._compared(predicted, target, objective))
        cached = {
            "history_cached": f"{len(history) if kept else 0} of {len(history)}",
            "goal_cached": "true" if goal_kept else "false",
        }
        return as_numpy(torch.cat(parts)), cached

    def _unrolled(self, context: Any, past: FloatArray, actions: Tensor) -> Any:
        """Last latents (S, ...) after the actions (S, T, A)."""
        if not len(past):
            ahead = self._model.unroll(context, act_suffix=actions.permute(1, 0, 2))
            if ahead is None:
                raise _failed(self.model_id, "no latents", f"unroll of {type(context).__name__}")
            if torch.is_tensor(ahead):
                return ahead[-1]
            return {name: ahead[name][-1] for name in ("visual", "proprio")}
        return self._with_history(context, past, actions)

    def _with_history(self, context: Any, past: FloatArray, actions: Tensor) -> Any:
        """``unroll`` from several frames, whose own actions are known.

        Upstream's loop begins with the first new action whatever the number of frames, so that
        frames and actions would not belong together.
        """
        inner: Any = getattr(self._model, "model", None)
        window = getattr(self._model, "ctxt_window", None)
        mode = getattr(self._model, "proprio_mode", "predict_proprio")
        if not callable(getattr(inner, "forward_pred", None)) or not isinstance(window, int):
            raise mismatch(
                ErrorCode.ACTION_HISTORY_INVALID,
                f"history of {self.model_id}",
                found=f"{len(past) + 1} frames",
                expected="1: this runtime has no predictor step to feed their actions to",
            )
        if self._uses_proprio and mode != "predict_proprio":
            raise mismatch(
                ErrorCode.ACTION_HISTORY_INVALID,
                f"history of {self.model_id}",
                found=f"{len(past) + 1} frames",
                expected=f"1: its joint state is not predicted ({mode})",
            )
        samples = len(actions)
        before = torch.from_numpy(past).float().to(self._device)
        joined = torch.cat([before.expand(samples, *before.shape), actions], dim=1)
        features = inner.encode_act(joined)
        visual = _visual(context).expand(samples, *_visual(context).shape[1:])
        proprio = None
        if self._uses_proprio:
            proprio = context["proprio"].expand(samples, *context["proprio"].shape[1:])
        for known in range(len(past) + 1, joined.shape[1] + 1):
            recent = slice(max(0, known - window), known)
            seen, _, felt = inner.forward_pred(
                visual[:, recent],
                features[:, recent],
                None if proprio is None else proprio[:, recent],
            )
            visual = torch.cat([visual, seen[:, -1:]], dim=1)
            if proprio is not None:
                proprio = torch.cat([proprio, felt[:, -1:]], dim=1)
        if proprio is None:
            return visual[:, -1]
        return {"visual": visual[:, -1], "proprio": proprio[:, -1]}

    def _ask(
        self,
        history: Sequence[Observation],
        goal: ImageArray,
        past: FloatArray,
        blocks: FloatArray,
        objective: str,
    ) -> tuple[object, object, dict[str, str]]:
        """Costs and index as the runtime's own scoring method gives them."""
        assert self._native is not None
        method = getattr(self._model, self._native)
        arguments: dict[str, Any] = {
            "observation": self._context(history),
            "goal": self._goal(goal),
            "actions": torch.from_numpy(blocks).float()[None].to(self._device),
        }
        taken = inspect.signature(method).parameters
        anything = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in taken.values())
        if anything or "objective" in taken:
            arguments["objective"] = objective
        elif objective != OBJECTIVES[0]:
            raise mismatch(
                ErrorCode.OBJECTIVE_UNKNOWN,
                "objective",
                found=f"'{objective}'",
                expected=f"empty: {self._native} of {self.model_id} takes none",
            )
        if anything or "action_history" in taken:
            arguments["action_history"] = torch.from_numpy(past).float()[None].to(self._device)
        elif len(past):
            raise mismatch(
                ErrorCode.ACTION_HISTORY_INVALID,
                "action_history",
                found=f"{len(past)} blocks",
                expected=f"none: {self._native} of {self.model_id} takes none",
            )
        try:
            answer = method(**arguments)
        except Exception as error:
            raise _failed(self.model_id, type(error).__name__, str(error)) from error
        cached = {"history_cached": f"0 of {len(history)}", "goal_cached": "false"}
        if "objective" not in arguments:
            cached["objective"] = "the runtime's own"
        if not isinstance(answer, Mapping):
            return as_numpy(answer), None, cached
        problem = answer.get("error")
        if problem is not None:
            if not isinstance(problem, Mapping):
                problem = {"type": "error", "message": problem}
            raise _failed(
                self.model_id, str(problem.get("type", "error")), str(problem.get("message", ""))
            )
        if answer.get("lower_is_better", True) is not True or "scores" not in answer:
            raise mismatch(
                ErrorCode.COSTS_INVALID,
                f"answer of {self._native}",
                found=f"{sorted(answer)}, lower_is_better {answer.get('lower_is_better', True)}",
                expected="scores that are costs: lower is better",
            )
        return as_numpy(answer["scores"]), answer.get("best_index"), cached


def load_jepa_wms(
    embodiment: Embodiment, options: JepaOptions, loader: Loader = load_from_hub
) -> JepaWmsScorer:
    """Load a JEPA-WMS model and warn of its licence.

    :param loader: injected by tests and by runtimes of other origin.
    :raises WorldForgeError: what the loader raises, ``DEVICE_UNAVAILABLE``,
        ``ACTION_STATISTICS_MISSING``, ``EMBODIMENT_MISMATCH`` or ``INVALID_ARGUMENT``.
    """
    torch_device(options.device)
    torch.set_num_threads(options.threads)
    model, preprocessor = loader(options)
    if isinstance(model, torch.nn.Module):
        model.to(options.device).eval().requires_grad_(False)
    scorer = JepaWmsScorer(model, preprocessor, embodiment, options)
    warnings.warn(LICENCE, stacklevel=2)
    return scorer


def _statistics(preprocessor: Any, name: str) -> FloatArray:
    values = getattr(preprocessor, f"action_{name}", None)
    if values is None:
        raise mismatch(
            ErrorCode.ACTION_STATISTICS_MISSING,
            f"action_{name} of the preprocessor",
            found="absent",
            expected="one number for each joint",
        )
    return np.asarray(values, dtype=np.float64)


def _last(latents: Any) -> Any:
    """Latents (1, ...) of the last frame of a context."""
    if torch.is_tensor(latents):
        return latents[:, -1]
    return {name: latents[name][:, -1] for name in ("visual", "proprio")}


def _visual(latent: Any) -> Tensor:
    part: Tensor = latent if torch.is_tensor(latent) else latent["visual"]
    return part


def _distance(predicted: Tensor, goal: Tensor, objective: str) -> Tensor:
    """(S, ...) and (...) to (S,): the mean over everything but the candidates.

    Upstream: ``ReprTargetDistMPCObjective`` and ``ReprTargetDistL1MPCObjective``.
    """
    difference = predicted - goal
    each = difference.square() if objective == "l2" else difference.abs()
    return each.flatten(1).mean(dim=1)


def _failed(model_id: str, kind: str, message: str) -> WorldForgeError:
    text = " ".join(message.split())[:300]
    return WorldForgeError(ErrorCode.MODEL_FAILED, f"{model_id} reported {kind}: {text}")
