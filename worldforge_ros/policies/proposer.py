"""A loaded LeRobot policy as something that proposes candidates."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.bridges.policy import actions_to_setpoints, policy_features
from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import Observation, check_window
from worldforge_ros.policies.base import MAX_CANDIDATES, MODES, Proposal
from worldforge_ros.policies.checkpoint import one_line
from worldforge_ros.policies.contract import (
    check_actions,
    contract_summary,
    describe,
    drop_not_finite,
)

if TYPE_CHECKING:
    import torch

_DIVERSITY_SAMPLE = 32


@dataclass(frozen=True)
class LoadedPolicy:
    """A LeRobot policy with its processors, wherever it comes from.

    ``loader_mode`` is ``injected`` for an object that the caller made, ``typed`` or ``config`` for
    a checkpoint (see :class:`~worldforge_ros.policies.checkpoint.CheckpointFiles`).
    """

    policy: Any
    preprocessor: Any
    postprocessor: Any
    name: str
    sha256: str = ""
    loader_mode: str = "injected"


class LeRobotPolicy:
    """Implements :class:`worldforge_ros.policies.base.Policy`.

    Keeps no observation between calls. Not thread safe: one call at a time.
    """

    def __init__(self, loaded: LoadedPolicy, embodiment: Embodiment, device: torch.device) -> None:
        from worldforge_ros.policies.samplers import make_sampler

        self._loaded = loaded
        self._config = loaded.policy.config
        self._embodiment = embodiment
        self._device = device
        self._sampler = make_sampler(loaded.policy)

    @property
    def model_id(self) -> str:
        """Folder name or hub id, and the first 12 hex digits of the weights' SHA-256."""
        return f"{self._loaded.name}@{self.sha256[:12] or self._loaded.loader_mode}"

    @property
    def sha256(self) -> str:
        """SHA-256 of ``model.safetensors`` in hex; empty for an injected policy."""
        return self._loaded.sha256

    @property
    def type(self) -> str:
        """LeRobot's name of the policy type."""
        return str(self._config.type)

    @property
    def history(self) -> int:
        """Observations that ``propose`` needs, one policy step apart."""
        return int(self._config.n_obs_steps)

    @property
    def max_horizon(self) -> int:
        """Most actions a candidate can have: the predicted steps that are not in the past."""
        return self._sampler.horizon

    @property
    def stochastic(self) -> bool:
        """Whether two candidates for one observation can differ."""
        return self._sampler.stochastic

    @property
    def num_inference_steps(self) -> int:
        """Passes of the action network for a candidate: denoising steps, 1 for others."""
        return self._sampler.inference_steps

    def set_inference_steps(self, steps: int) -> None:
        """Use another number of passes from now on.

        :raises WorldForgeError: ``INVALID_ARGUMENT`` for a policy without, or out of range.
        """
        self._sampler.set_inference_steps(steps)

    def reset(self) -> None:
        """Forget what LeRobot's objects keep between calls; the next call begins anew."""
        for part in (self._loaded.policy, self._loaded.preprocessor, self._loaded.postprocessor):
            if hasattr(part, "reset"):
                part.reset()

    def warm_up(self, history: Sequence[Observation], num_candidates: int) -> None:
        """Run as requests for so many candidates will; a policy without randomness for one."""
        try:
            self.propose(history, num_candidates if self.stochastic else 1, seed=0)
        except WorldForgeError as error:
            # Only its answers show whether a type without a sampler of its own is random.
            if error.code is not ErrorCode.DETERMINISTIC_POLICY or self.stochastic:
                raise
        for _ in range(2):
            self.propose(history, num_candidates if self.stochastic else 1, seed=0)

    def propose(
        self,
        history: Sequence[Observation],
        num_candidates: int,
        horizon: int = 0,
        seed: int = -1,
        mode: str = "",
        options: Mapping[str, str] | None = None,
    ) -> Proposal:
        """Sample ``num_candidates`` chunks (S, H, J) in one batch.

        A candidate that is not finite is left out; ``dropped`` in the metadata has its number.

        :raises WorldForgeError: ``NO_CANDIDATES``, ``TOO_MANY_CANDIDATES``, ``HORIZON_INVALID``,
            ``POLICY_MODE_UNSUPPORTED``, ``INVALID_ARGUMENT`` for a seed or an option,
            ``DETERMINISTIC_POLICY`` for more than one candidate of a policy without randomness,
            ``HISTORY_TOO_SHORT`` and other refusals of the observations, ``MODEL_FAILED`` where the
            policy raises or no candidate is finite, ``TENSOR_SHAPE_MISMATCH`` and
            ``ACTION_DIM_MISMATCH`` for an answer that is not what the embodiment says.
        """
        mode = self._check_mode(mode)
        length = self._check_request(num_candidates, horizon, seed, mode)
        values = self._check_options(options or {})
        spec = self._embodiment.policy
        check_window(history, self.history, spec.step, self._embodiment.observation.tolerance)
        if seed == -1:
            seed = secrets.randbelow(2**62)
        features = policy_features(history, self._embodiment)
        task = history[-1].task or self._embodiment.task
        steps = values.get("num_inference_steps", self.num_inference_steps)
        began = time.perf_counter()
        raw = self._sample(features, task, num_candidates, seed, values)
        latency = time.perf_counter() - began
        actions = check_actions(_as_array(raw), num_candidates, length, self._embodiment)
        setpoints = actions_to_setpoints(actions, history[-1].position, self._embodiment)
        # What float32 cannot hold becomes infinite, and is then left out and named.
        with np.errstate(over="ignore"):
            candidates, dropped = drop_not_finite(setpoints.astype(np.float32))
        metadata = {
            "model_id": self.model_id,
            "sha256": self.sha256,
            "type": self.type,
            "loader_mode": self._loaded.loader_mode,
            "mode": mode,
            "device": str(self._device),
            "seed": str(seed),
            "num_inference_steps": f"{steps:g}",
            "model_latency_s": f"{latency:.6f}",
            "randomness": self._sampler.randomness if self.stochastic else "none",
            "requested": str(num_candidates),
            "dropped": ",".join(map(str, dropped)),
            "diversity": f"{diversity(candidates):.6f}",
            "contract": contract_summary(self._embodiment, candidates.shape[1]),
            "raw_action": describe(raw),
        }
        return Proposal(
            candidates=candidates,
            joint_names=self._embodiment.joint_names,
            step=spec.step,
            metadata=metadata,
        )

    def _check_mode(self, mode: str) -> str:
        allowed = MODES if self._sampler.chunks else ("select_action",)
        if mode and mode not in allowed:
            raise mismatch(
                ErrorCode.POLICY_MODE_UNSUPPORTED,
                "mode",
                found=f"'{mode}'",
                expected=f"{' or '.join(allowed)} for a policy of type {self.type}",
            )
        return mode or ("predict_chunk" if self._sampler.chunks else "select_action")

    def _check_request(self, num_candidates: int, horizon: int, seed: int, mode: str) -> int:
        if not 1 <= num_candidates <= MAX_CANDIDATES:
            raise mismatch(
                ErrorCode.TOO_MANY_CANDIDATES if num_candidates > 0 else ErrorCode.NO_CANDIDATES,
                "num_candidates",
                found=num_candidates,
                expected=f"1 to {MAX_CANDIDATES}",
            )
        if num_candidates > 1 and not self.stochastic:
            from worldforge_ros.policies.samplers import deterministic

            raise deterministic(self.type, num_candidates)
        most = 1 if mode == "select_action" else self.max_horizon
        if not 0 <= horizon <= most:
            raise mismatch(
                ErrorCode.HORIZON_INVALID,
                "horizon",
                found=horizon,
                expected=f"1 to {most} for mode {mode}, or 0 for all that {self.model_id} predicts",
            )
        if not -1 <= seed < 2**63:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "seed",
                found=seed,
                expected="0 to 2^63 - 1, or -1 for a fresh one",
            )
        return 1 if mode == "select_action" else horizon

    def _check_options(self, options: Mapping[str, str]) -> dict[str, float]:
        known = self._sampler.options
        values = {}
        for name, text in options.items():
            if name not in known:
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    "options",
                    found=f"key '{name}'",
                    expected=f"{' or '.join(known) if known else 'no options'} "
                    f"for a policy of type {self.type}",
                )
            try:
                values[name] = float(text)
            except ValueError:
                values[name] = math.nan
            if not math.isfinite(values[name]):
                raise mismatch(
                    ErrorCode.INVALID_ARGUMENT,
                    f"options.{name}",
                    found=f"'{text}'",
                    expected="a finite number",
                )
        self._sampler.check_options(values)
        return values

    def _sample(
        self,
        features: Mapping[str, npt.NDArray[np.float32]],
        task: str,
        count: int,
        seed: int,
        options: Mapping[str, float],
    ) -> Any:
        """Actions (S, H, A) in the policy's units, from the present on."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        try:
            with torch.inference_mode():
                batch = self._batch(features, task)
                chunk = self._sampler.sample(batch, count, generator, options)
                return self._loaded.postprocessor(chunk)
        except WorldForgeError:
            raise
        except Exception as error:
            raise mismatch(
                ErrorCode.MODEL_FAILED,
                f"policy {self.model_id}",
                found=f"raising {type(error).__name__} ({one_line(error)})",
                expected="candidates",
            ) from error

    def _batch(self, features: Mapping[str, npt.NDArray[np.float32]], task: str) -> dict[str, Any]:
        """Pre-processed features with a batch dimension of one, and a time dimension where
        expected.
        """
        import torch

        inputs: dict[str, Any] = {
            name: torch.from_numpy(array if self._sampler.windowed else array[-1]).unsqueeze(0)
            for name, array in features.items()
        }
        # Policies that follow an instruction read it from here; the others leave it alone.
        inputs["task"] = [task]
        processed = self._loaded.preprocessor(inputs)
        return {
            name: value
            for name, value in processed.items()
            if value is not None and name not in ("action", "info") and not name.startswith("next.")
        }


def diversity(candidates: npt.NDArray[np.float32]) -> float:
    """Mean distance in m or rad between two different candidates (S, H, J), averaged over steps, of
    at most 32 of them; 0 for one.
    """
    chosen = candidates[:_DIVERSITY_SAMPLE].astype(np.float64)
    count = len(chosen)
    if count < 2:
        return 0.0
    distance = np.linalg.norm(chosen[:, None] - chosen[None], axis=-1).mean(axis=-1)
    return float(distance.sum() / (count * (count - 1)))


def _as_array(raw: Any) -> Any:
    return raw.detach().double().cpu().numpy() if hasattr(raw, "detach") else raw
