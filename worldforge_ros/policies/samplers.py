"""Several samples of a LeRobot policy's own distribution in one pass.

Each kind of policy draws its randomness in another place. A sampler knows that place: it encodes
the observation once and lets only what follows run for every candidate. ``sample`` returns actions
(S, H, A) in the policy's normalised units, the first one due now.

Everything here needs torch; nothing here is imported before a policy is loaded.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

Batch = dict[str, Any]
"""Pre-processed observation, a batch of one: tensors, and the task as a list of one text."""
Options = Mapping[str, float]
"""Checked values of a request's options."""

_LATENTS_AT_ONCE = 64
"""A pass of ACT takes some MB for each candidate in every layer; the rest waits for another."""


class Sampler:
    """One kind of policy; :attr:`randomness` says in words where its candidates differ."""

    randomness: ClassVar[str] = "whatever the policy draws itself"
    options: ClassVar[tuple[str, ...]] = ()
    """Names of the request options that :meth:`sample` uses."""
    chunks: ClassVar[bool] = True
    """Whether the policy predicts chunks; if not, a candidate is a single action."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.config = policy.config

    @property
    def windowed(self) -> bool:
        """Whether the batch has a time dimension."""
        return int(self.config.n_obs_steps) > 1

    @property
    def stochastic(self) -> bool:
        """Whether two candidates can differ."""
        return True

    @property
    def horizon(self) -> int:
        """Most actions in a candidate."""
        for name in ("chunk_size", "action_chunk_size", "n_action_steps", "horizon"):
            length = getattr(self.config, name, None)
            if isinstance(length, int):
                return length
        return 1

    @property
    def inference_steps(self) -> int:
        """Passes of the action network for one candidate."""
        return 1

    def set_inference_steps(self, steps: int) -> None:
        """Use another number of passes from now on.

        :raises WorldForgeError: ``INVALID_ARGUMENT`` where the policy has no such number.
        """
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "num_inference_steps",
            found=steps,
            expected=f"none for a policy of type {self.config.type}",
        )

    def check_options(self, options: Options) -> None:
        """:raises WorldForgeError: ``INVALID_ARGUMENT`` for a value that cannot be used."""

    @abstractmethod
    def sample(
        self, batch: Batch, count: int, generator: torch.Generator, options: Options
    ) -> Tensor:
        """Actions (count, H, A); everything random comes from ``generator`` or its seed."""


class DiffusionSampler(Sampler):
    """Condition once, denoise ``count`` noises together (Chi et al. 2023)."""

    randomness = "the noise that denoising starts from"
    options = ("num_inference_steps",)

    @property
    def windowed(self) -> bool:
        """The network's condition has a time dimension even for a single observation."""
        return True

    @property
    def horizon(self) -> int:
        """The predicted steps that are not in the past."""
        indices = list(self.config.action_delta_indices)
        return len(indices) - indices.index(0)

    @property
    def inference_steps(self) -> int:
        """Denoising steps."""
        return int(self.policy.diffusion.num_inference_steps)

    def set_inference_steps(self, steps: int) -> None:
        """Denoise in so many steps."""
        self.check_options({"num_inference_steps": steps})
        self.policy.diffusion.num_inference_steps = steps

    def check_options(self, options: Options) -> None:
        """``num_inference_steps`` from 1 to the training's number of noise levels."""
        _check_steps(options, int(self.config.num_train_timesteps))

    def sample(
        self, batch: Batch, count: int, generator: torch.Generator, options: Options
    ) -> Tensor:
        """Denoise ``count`` noises of the whole predicted horizon, leave out what is past."""
        from lerobot.utils.constants import OBS_IMAGES

        model = self.policy.diffusion
        if self.config.image_features:
            pictures = [batch[name] for name in self.config.image_features]
            batch = {**batch, OBS_IMAGES: torch.stack(pictures, dim=-4)}
        condition = model._prepare_global_conditioning(batch)
        noise = torch.randn(
            (count, self.config.horizon, self.config.action_feature.shape[0]), generator=generator
        )
        with _steps(model, "num_inference_steps", options):
            chunk: Tensor = model.conditional_sample(
                count,
                global_cond=condition.expand(count, -1),
                generator=generator,
                noise=noise.to(condition),
            )
        return chunk[:, list(self.config.action_delta_indices).index(0) :]


class ActSampler(Sampler):
    """ACT: the first candidate is the policy's own answer, the mean of its latent's prior (zero);
    the others draw their latent from the prior N(0, 1) (Zhao et al. 2023, section IV-C).
    """

    randomness = "the latent: zero for the first candidate, drawn from its prior for the others"
    options = ("latent_std",)

    @property
    def stochastic(self) -> bool:
        """An ACT that was trained without a latent has nothing to draw."""
        return bool(self.config.use_vae)

    def check_options(self, options: Options) -> None:
        """``latent_std`` above 0, at most 10."""
        _check_range(options, "latent_std", 10.0)

    def sample(
        self, batch: Batch, count: int, generator: torch.Generator, options: Options
    ) -> Tensor:
        """Pictures pass the backbone once, the transformer runs for every latent."""
        model = self.policy.model
        weight = model.encoder_latent_input_proj.weight
        latent = torch.randn((count, self.config.latent_dim), generator=generator)
        latent[0] = 0.0
        latent = latent.to(weight) * options.get("latent_std", 1.0)
        pictures = bool(self.config.image_features)
        shared = [model.backbone, model.encoder_img_feat_input_proj] if pictures else []
        return torch.cat(
            [self._decode(batch, part, shared) for part in torch.split(latent, _LATENTS_AT_ONCE)]
        )

    def _decode(self, batch: Batch, latent: Tensor, shared: list[nn.Module]) -> Tensor:
        with contextlib.ExitStack() as stack:
            for module in shared:
                stack.enter_context(_once(module, len(latent)))
            hook = self.policy.model.encoder_latent_input_proj.register_forward_pre_hook(
                lambda module, arguments: (latent,)
            )
            stack.callback(hook.remove)
            chunk: Tensor = self.policy.predict_action_chunk(expand(batch, len(latent)))
        return chunk


class VqBetSampler(Sampler):
    """VQ-BeT: the transformer runs once, the codes are drawn for every candidate (Lee et al.
    2024, section 4.2).
    """

    randomness = "the codes of the action quantiser"
    options = ("temperature",)

    @property
    def windowed(self) -> bool:
        """The network expects a time dimension."""
        return True

    @property
    def horizon(self) -> int:
        """Actions that a code stands for."""
        return int(self.config.action_chunk_size)

    def check_options(self, options: Options) -> None:
        """``temperature`` of the codes' soft-max above 0, at most 100."""
        _check_range(options, "temperature", 100.0)

    def sample(
        self, batch: Batch, count: int, generator: torch.Generator, options: Options
    ) -> Tensor:
        """Draw codes and their offsets from the features of one pass."""
        from lerobot.utils.constants import OBS_IMAGES, OBS_STATE

        model = self.policy.vqbet
        pictures = torch.stack([batch[name] for name in self.config.image_features], dim=-4)
        seen: list[Tensor] = []
        head = model.action_head
        hook = head.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
        try:
            with _seeded(generator, pictures.device):
                model({OBS_IMAGES: pictures, OBS_STATE: batch[OBS_STATE]}, rollout=True)
        finally:
            hook.remove()
        features = seen[0].expand(count, -1, -1)
        temperature = self.config.bet_softmax_temperature
        try:
            self.config.bet_softmax_temperature = options.get("temperature", temperature)
            with _seeded(generator, pictures.device):
                predicted = head(features)["predicted_action"]
        finally:
            self.config.bet_softmax_temperature = temperature
        present: Tensor = predicted[:, int(self.config.n_obs_steps) - 1]
        return present.reshape(count, self.horizon, -1)


class TdMpcSampler(Sampler):
    """TD-MPC: the latent is encoded once, every candidate is a plan of its own (Hansen et al.
    2022, algorithm 1); without planning its policy network gives one action.
    """

    randomness = "the samples of its own planner"

    @property
    def stochastic(self) -> bool:
        """Its policy network alone always gives the same action."""
        return bool(self.config.use_mpc)

    @property
    def horizon(self) -> int:
        """Actions of a plan."""
        return int(self.config.horizon) if self.config.use_mpc else 1

    def sample(
        self, batch: Batch, count: int, generator: torch.Generator, options: Options
    ) -> Tensor:
        """Plan from ``count`` copies of one latent; nothing is kept from an earlier plan."""
        from lerobot.utils.constants import OBS_ENV_STATE, OBS_STATE

        model = self.policy.model
        # The mean of what it encodes depends on the order that upstream has.
        names = [*self.config.image_features, OBS_ENV_STATE, OBS_STATE]
        latent = model.encode({name: batch[name] for name in names if name in batch})
        self.policy.reset()
        with _seeded(generator, latent.device):
            if self.config.use_mpc:
                actions = self.policy.plan(latent.expand(count, -1))
            else:
                actions = model.pi(latent).unsqueeze(0)
        self.policy.reset()
        clamped: Tensor = torch.clamp(actions, -1, 1).transpose(0, 1)
        return clamped


class FlowSampler(Sampler):
    """Flow matching on a vision-language model (SmolVLA, pi0, pi0.5): pictures, text and state
    are read once, ``count`` noises are integrated together against the same keys and values.
    """

    randomness = "the noise that the flow starts from"
    options = ("num_inference_steps",)

    @property
    def _steps_field(self) -> str:
        return "num_steps" if hasattr(self.config, "num_steps") else "num_inference_steps"

    @property
    def inference_steps(self) -> int:
        """Steps of the integration."""
        return int(getattr(self.config, self._steps_field))

    def set_inference_steps(self, steps: int) -> None:
        """Integrate in so many steps."""
        self.check_options({"num_inference_steps": steps})
        setattr(self.config, self._steps_field, steps)

    def check_options(self, options: Options) -> None:
        """``num_inference_steps`` from 1 to 1000."""
        _check_steps(options, 1000)

    def sample(
        self, batch: Batch, count: int, generator: torch.Generator, options: Options
    ) -> Tensor:
        """The policy's own integration, with everything but the noise shared."""
        model = self.policy.model
        noise = torch.randn(
            (count, self.config.chunk_size, self.config.max_action_dim), generator=generator
        )
        device = next(self.policy.parameters()).device
        own = model.denoise_step
        shared: dict[str, Any] = {}

        def denoise_step(**arguments: Any) -> Tensor:
            for name in arguments.keys() - {"x_t"}:
                # Only the time differs from one step to the next.
                if name == "timestep" or name not in shared:
                    shared[name] = repeat(arguments[name], count)
                arguments[name] = shared[name]
            velocity: Tensor = own(**arguments)
            return velocity

        self.policy.reset()
        with _steps(self.config, self._steps_field, options):
            model.denoise_step = denoise_step
            try:
                chunk: Tensor = self.policy.predict_action_chunk(
                    dict(batch), noise=noise.to(device)
                )
            finally:
                del model.denoise_step
                self.policy.reset()
        return chunk


class SingleActionSampler(Sampler):
    """A policy that answers with one action (SAC and its kin): copies of the observation in one
    batch, one draw for each.
    """

    randomness = "the action itself"
    chunks = False

    @property
    def horizon(self) -> int:
        """A single action."""
        return 1

    def sample(
        self, batch: Batch, count: int, generator: torch.Generator, options: Options
    ) -> Tensor:
        """``select_action`` of ``count`` copies."""
        self.policy.reset()
        with _seeded(generator, next(self.policy.parameters()).device):
            action: Tensor = self.policy.select_action(expand(batch, count))
        return action.unsqueeze(1)


class BatchSampler(Sampler):
    """Any other type: copies of the observation in one batch through ``predict_action_chunk``.

    The observation is encoded for every copy. Whether copies differ is seen when they are there,
    and remembered.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self._deterministic = False

    @property
    def stochastic(self) -> bool:
        """Until copies turned out to be the same."""
        return not self._deterministic

    def sample(
        self, batch: Batch, count: int, generator: torch.Generator, options: Options
    ) -> Tensor:
        """``predict_action_chunk`` of ``count`` copies, with a fresh policy."""
        self.policy.reset()
        copies = self._fill(expand(batch, count))
        with _seeded(generator, next(self.policy.parameters()).device):
            chunk: Tensor = self.policy.predict_action_chunk(copies)
        self.policy.reset()
        if len(chunk) != count:
            raise mismatch(
                ErrorCode.TENSOR_SHAPE_MISMATCH,
                f"chunk of policy type {self.config.type}",
                found=tuple(chunk.shape),
                expected=f"({count}, actions, joints)",
            )
        if count > 1 and torch.equal(chunk, chunk[:1].expand_as(chunk)):
            self._deterministic = True
            raise deterministic(str(self.config.type), count)
        return chunk

    def _fill(self, batch: Batch) -> Batch:
        """Put the window into the policy's own queues, where it has some, as ``select_action``
        would have step by step; returns the newest step.
        """
        from lerobot.utils.constants import OBS_IMAGES

        def stacked(step: Batch) -> Batch:
            if not self.config.image_features:
                return step
            pictures = [step[name] for name in self.config.image_features]
            return {**step, OBS_IMAGES: torch.stack(pictures, dim=-4)}

        steps = [batch]
        if self.windowed:
            steps = [
                {
                    name: value[:, index] if isinstance(value, Tensor) else value
                    for name, value in batch.items()
                }
                for index in range(int(self.config.n_obs_steps))
            ]
        queues = getattr(self.policy, "_queues", {})
        if any(name.startswith("observation") for name in queues):
            from lerobot.policies.utils import populate_queues

            for step in steps:
                queues = populate_queues(queues, stacked(step))
            self.policy._queues = queues
            return stacked(steps[-1])
        return steps[-1]


SAMPLERS: Mapping[str, type[Sampler]] = {
    "act": ActSampler,
    "diffusion": DiffusionSampler,
    "vqbet": VqBetSampler,
    "tdmpc": TdMpcSampler,
    "smolvla": FlowSampler,
    "pi0": FlowSampler,
    "pi05": FlowSampler,
    "sac": SingleActionSampler,
    "gaussian_actor": SingleActionSampler,
}
"""By LeRobot's type name (``gaussian_actor`` is what later lines call ``sac``'s actor)."""


def make_sampler(policy: Any) -> Sampler:
    """The sampler of a loaded policy; :class:`BatchSampler` for a type without one of its own."""
    return SAMPLERS.get(str(policy.config.type), BatchSampler)(policy)


def deterministic(kind: str, count: int) -> WorldForgeError:
    """The refusal of more than one candidate where all would be the same."""
    return mismatch(
        ErrorCode.DETERMINISTIC_POLICY,
        "num_candidates",
        found=count,
        expected=f"1: this policy of type {kind} gives one answer to one observation",
    )


def expand(batch: Batch, count: int) -> Batch:
    """``count`` copies of a batch of one, without copying memory; what has no batch dimension of
    one is left as it is.
    """
    return {
        name: value * count if isinstance(value, list) else repeat(value, count)
        for name, value in batch.items()
    }


def repeat(value: Any, count: int) -> Any:
    """``count`` copies along the first dimension of a tensor, a mapping or sequence of such, or a
    key-value cache of transformers; anything else is returned as it is.
    """
    if isinstance(value, Tensor):
        return value.expand(count, *value.shape[1:]) if value.ndim and len(value) == 1 else value
    if isinstance(value, Mapping):
        return {key: repeat(item, count) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(repeat(item, count) for item in value)
    if hasattr(value, "batch_repeat_interleave"):
        value.batch_repeat_interleave(count)
    return value


@contextlib.contextmanager
def _once(module: nn.Module, count: int) -> Iterator[None]:
    """Let ``module`` see the first of ``count`` equal inputs and give its answer to all."""

    def first(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(argument[:1] for argument in arguments)

    def spread(module: nn.Module, arguments: object, answer: Any) -> Any:
        return repeat(answer, count)

    hooks = (module.register_forward_pre_hook(first), module.register_forward_hook(spread))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Torch's global generators, for code that draws from them, begin with the seed of
    ``generator`` and are afterwards as they were.
    """
    devices = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    seed = generator.initial_seed()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _steps(target: Any, field: str, options: Options) -> Iterator[None]:
    """Another number of inference steps for one request."""
    before = getattr(target, field)
    setattr(target, field, int(options.get("num_inference_steps", before)))
    try:
        yield
    finally:
        setattr(target, field, before)


def _check_steps(options: Options, most: int) -> None:
    steps = options.get("num_inference_steps")
    if steps is not None and not (1 <= steps <= most and float(steps).is_integer()):
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "num_inference_steps",
            found=steps,
            expected=f"a whole number from 1 to {most}",
        )


def _check_range(options: Options, name: str, most: float) -> None:
    value = options.get(name)
    if value is not None and not 0.0 < value <= most:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            f"options.{name}",
            found=value,
            expected=f"above 0, at most {most:g}",
        )
