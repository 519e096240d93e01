"""Candidates are the policy's own: every kind of LeRobot policy against its upstream code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_policies as tiny

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.policies.lerobot import load_lerobot_policy
from worldforge_ros.policies.proposer import LeRobotPolicy, LoadedPolicy

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("lerobot", reason="lerobot is not installed")

pytestmark = pytest.mark.timeout(300)

SCALE, OFFSET = np.array([2.0, 1.0]), np.array([0.0, 0.5])
SEED = 11
STOCHASTIC_CHUNKS = [kind for kind in tiny.KINDS if kind != tiny.SINGLE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The checkpoint of a kind, written once."""
    root = tmp_path_factory.mktemp("policies")
    made: dict[str, Path] = {}

    def get(kind: str, **changes: Any) -> Path:
        key = kind + "".join(f"-{name}-{value}" for name, value in changes.items())
        if key not in made:
            made[key] = tiny.make(kind, root / key, **changes)
        return made[key]

    return get


@pytest.fixture(scope="module")
def load(folder: Callable[..., Path]) -> Callable[..., LeRobotPolicy]:
    loaded: dict[str, LeRobotPolicy] = {}

    def get(kind: str, **changes: Any) -> LeRobotPolicy:
        path = folder(kind, **changes)
        if path.name not in loaded:
            loaded[path.name] = load_lerobot_policy(path, tiny.robot(kind))
        return loaded[path.name]

    return get


class Upstream:
    """The same checkpoint through LeRobot's public functions, one observation after another."""

    def __init__(self, kind: str, path: Path) -> None:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        config = PreTrainedConfig.from_pretrained(str(path))
        self.kind = kind
        self.config: Any = config
        self.policy = get_policy_class(kind).from_pretrained(str(path), config=config)
        self.pre, self.post = make_pre_post_processors(config, pretrained_path=str(path))

    def batches(self, window: list[Observation], copies: int = 1) -> list[dict[str, Any]]:
        """Every observation of the window, pre-processed as a batch of ``copies``."""
        found = []
        for item in window:
            state = item.position * SCALE + OFFSET
            picture = item.images["top"].transpose(2, 0, 1) / np.float32(255)
            found.append(
                self.pre(
                    {
                        "observation.state": torch.tensor(state, dtype=torch.float32).repeat(
                            copies, 1
                        ),
                        tiny.image_key(self.kind): torch.tensor(picture).repeat(copies, 1, 1, 1),
                        "task": [tiny.robot().task] * copies,
                    }
                )
            )
        return found

    def fill(self, window: list[Observation], copies: int = 1) -> dict[str, Any]:
        """Fill the policy's queues as its ``select_action`` does; returns the newest batch."""
        from lerobot.policies.utils import populate_queues

        self.policy.reset()
        batch: dict[str, Any] = {}
        for batch in self.batches(window, copies):
            batch.pop("action")
            pictures = [batch[name] for name in self.config.image_features]
            batch["observation.images"] = torch.stack(pictures, dim=-4)
            self.policy._queues = populate_queues(self.policy._queues, batch)
        return batch

    def setpoints(self, actions: Any) -> np.ndarray:
        """Raw actions in SI, by the embodiment's numbers worked out here."""
        return (self.post(actions).double().numpy() - OFFSET) / SCALE

    def noise(self, *shape: int) -> Any:
        return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))

    def chunk(self, window: list[Observation]) -> np.ndarray:
        """``predict_action_chunk`` with the noise that belongs to the seed."""
        with torch.no_grad():
            if self.kind == "act":
                return self.setpoints(self.policy.predict_action_chunk(self.batches(window)[0]))
            if self.kind == "smolvla":
                noise = self.noise(1, 6, 3)
                batch = self.batches(window)[0]
                return self.setpoints(self.policy.predict_action_chunk(batch, noise=noise))
            if self.kind == tiny.SINGLE:
                torch.manual_seed(SEED)
                return self.setpoints(self.policy.select_action(self.batches(window)[0]))[:, None]
            batch = self.fill(window)
            if self.kind == "diffusion":
                noise = self.noise(1, 8, 2)
                return self.setpoints(self.policy.predict_action_chunk(batch, noise=noise))
            torch.manual_seed(SEED)
            chunk = self.policy.predict_action_chunk(batch)
            return self.setpoints(chunk.transpose(0, 1) if self.kind == "tdmpc" else chunk)

    def many(self, window: list[Observation], count: int) -> np.ndarray:
        """``count`` candidates, every one of them encoded by itself."""
        with torch.no_grad():
            if self.kind == "act":
                latents = self.noise(count, 4)
                latents[0] = 0.0
                return np.concatenate([self._act(window, z[None]) for z in latents])
            if self.kind == "diffusion":
                batch = self.fill(window)
                noise = self.noise(count, 8, 2)
                return np.concatenate(
                    [
                        self.setpoints(self.policy.predict_action_chunk(batch, noise=one[None]))
                        for one in noise
                    ]
                )
            if self.kind == "smolvla":
                noise = self.noise(count, 6, 3)
                return np.concatenate(
                    [
                        self.setpoints(
                            self.policy.predict_action_chunk(
                                self.batches(window)[0], noise=one[None]
                            )
                        )
                        for one in noise
                    ]
                )
            batch = self.fill(window, count)
            torch.manual_seed(SEED)
            chunk = self.policy.predict_action_chunk(batch)
            return self.setpoints(chunk.transpose(0, 1) if self.kind == "tdmpc" else chunk)

    def _act(self, window: list[Observation], latent: Any) -> np.ndarray:
        hook = self.policy.model.encoder_latent_input_proj.register_forward_pre_hook(
            lambda module, arguments: (latent,)
        )
        try:
            return self.setpoints(self.policy.predict_action_chunk(self.batches(window)[0]))
        finally:
            hook.remove()


@pytest.fixture(scope="module")
def upstream(folder: Callable[..., Path]) -> Callable[[str], Upstream]:
    made: dict[str, Upstream] = {}

    def get(kind: str) -> Upstream:
        if kind not in made:
            made[kind] = Upstream(kind, folder(kind))
        return made[kind]

    return get


def refused(policy: LeRobotPolicy, code: ErrorCode, **request: Any) -> str:
    arguments = {"num_candidates": 1, **request}
    with pytest.raises(WorldForgeError) as caught:
        policy.propose(tiny.window(policy.history), **arguments)
    assert caught.value.code is code, str(caught.value)
    return caught.value.message


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_one_candidate_is_the_policys_own_chunk(
    kind: str, load: Callable[..., LeRobotPolicy], upstream: Callable[[str], Upstream]
) -> None:
    policy = load(kind)
    window = tiny.window(policy.history)
    expected = upstream(kind).chunk(window)
    found = policy.propose(window, 1, seed=SEED).candidates
    assert found.shape[0] == expected.shape[0] == 1
    np.testing.assert_allclose(found[:, : expected.shape[1]], expected, atol=1e-5)


@pytest.mark.parametrize("kind", STOCHASTIC_CHUNKS)
def test_candidates_of_a_batch_are_those_encoded_one_by_one(
    kind: str, load: Callable[..., LeRobotPolicy], upstream: Callable[[str], Upstream]
) -> None:
    policy = load(kind)
    window = tiny.window(policy.history)
    expected = upstream(kind).many(window, 5)
    proposal = policy.propose(window, 5, seed=SEED)
    np.testing.assert_allclose(proposal.candidates[:, : expected.shape[1]], expected, atol=2e-5)
    distances = [
        np.linalg.norm(proposal.candidates[i] - proposal.candidates[j], axis=-1).mean()
        for i in range(5)
        for j in range(5)
        if i != j
    ]
    assert float(proposal.metadata["diversity"]) == pytest.approx(np.mean(distances), rel=1e-3)
    assert min(distances) > 1e-4


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_seed_repeats_and_leaves_the_global_generator_alone(
    kind: str, load: Callable[..., LeRobotPolicy]
) -> None:
    policy = load(kind)
    window = tiny.window(policy.history)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = policy.propose(window, 3, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = policy.propose(window, 3, seed=4)
    np.testing.assert_array_equal(again.candidates, first.candidates)
    other = policy.propose(window, 3, seed=5)
    assert not np.array_equal(other.candidates[1:], first.candidates[1:])
    fresh = policy.propose(window, 3)
    repeated = policy.propose(window, 3, seed=int(fresh.metadata["seed"]))
    np.testing.assert_array_equal(repeated.candidates, fresh.candidates)


@pytest.mark.parametrize(
    ("kind", "encoder"),
    [
        ("act", "model.backbone.conv1"),
        ("diffusion", "diffusion.rgb_encoder"),
        ("vqbet", "vqbet.rgb_encoder"),
        ("tdmpc", "model._encoder"),
        ("smolvla", "model.vlm_with_expert.vlm.model.vision_model"),
    ],
)
def test_the_picture_is_encoded_once(
    kind: str, encoder: str, load: Callable[..., LeRobotPolicy]
) -> None:
    policy = load(kind)
    sizes: list[int] = []

    def note(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        value = arguments[0] if arguments else named["pixel_values"]
        sizes.append(len(next(iter(value.values())) if isinstance(value, dict) else value))

    module = policy._loaded.policy.get_submodule(encoder)
    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        policy.propose(tiny.window(policy.history), 7, seed=0)
    finally:
        hook.remove()
    # One picture, or one for each step of the window; never one for each candidate.
    assert sum(sizes) in (1, policy.history)


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_the_flow_of_pi0_and_its_successor(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real classes with a very small Gemma and one layer of vision."""
    import importlib

    from lerobot.policies.factory import get_policy_class, make_policy_config
    from transformers.models.auto import CONFIG_MAPPING

    from worldforge_ros.policies.samplers import FlowSampler

    module = importlib.import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    gemma = SimpleNamespace(width=32, depth=2, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=16)
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}

    small = {
        "paligemma": lambda: CONFIG_MAPPING["paligemma"](vision_config=vision),
        "gemma": CONFIG_MAPPING["gemma"],
    }
    name = next(n for n in vars(module) if n.startswith("PaliGemmaForConditionalGeneration"))
    whole = getattr(module, name)

    def narrow(config: Any) -> Any:
        config.vision_config.projection_dim = gemma.width
        return whole(config=config)

    monkeypatch.setattr(module, name, narrow)
    monkeypatch.setattr(module, "get_gemma_config", lambda variant: gemma)
    monkeypatch.setattr(module, "CONFIG_MAPPING", small)
    config = make_policy_config(
        kind,
        device="cpu",
        push_to_hub=False,
        chunk_size=6,
        n_action_steps=6,
        max_state_dim=4,
        max_action_dim=3,
        num_inference_steps=3,
        image_resolution=(28, 28),
        dtype="float32",
        input_features=tiny.features(
            {"observation.state": (2,), "observation.images.top": (3, tiny.SIDE, tiny.SIDE)}
        ),
        output_features=tiny.features({"action": (2,)}),
    )
    torch.manual_seed(0)
    try:
        policy = get_policy_class(kind)(config).eval()
    except ValueError as error:
        if "transformer version" not in str(error):
            raise
        pytest.skip(f"this LeRobot cannot run {kind} with the released transformers: {error}")
    batch = {
        "observation.state": torch.randn(1, 2),
        "observation.images.top": torch.rand(1, 3, tiny.SIDE, tiny.SIDE),
        "observation.language.tokens": torch.arange(8)[None],
        "observation.language.attention_mask": torch.arange(8)[None] < 5,
    }
    with torch.inference_mode():
        found = FlowSampler(policy).sample(batch, 4, torch.Generator().manual_seed(SEED), {})
        noise = torch.randn((4, 6, 3), generator=torch.Generator().manual_seed(SEED))
        expected = torch.cat(
            [policy.predict_action_chunk(dict(batch), noise=one[None]) for one in noise]
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    from worldforge_ros.policies.lerobot import _check_weights

    policy.save_pretrained(tmp_path)
    _check_weights(policy, tmp_path / "model.safetensors")
    torch.nn.init.zeros_(policy.model.action_out_proj.weight)
    with pytest.raises(WorldForgeError, match=r"value of .*action_out_proj"):
        _check_weights(policy, tmp_path / "model.safetensors")
    assert float((found[0] - found[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["diffusion", "vqbet", "smolvla"])
def test_a_type_without_a_sampler_of_its_own(
    kind: str,
    folder: Callable[..., Path],
    upstream: Callable[[str], Upstream],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What any other type of LeRobot's registry gets, on policies that have better."""
    from worldforge_ros.policies import samplers

    monkeypatch.setattr(samplers, "SAMPLERS", {})
    policy = load_lerobot_policy(folder(kind), tiny.robot(kind))
    window = tiny.window(policy.history)
    other = upstream(kind)
    with torch.no_grad():
        batch = other.batches(window)[0] if kind == "smolvla" else other.fill(window)
        torch.manual_seed(SEED)
        expected = other.setpoints(other.policy.predict_action_chunk(batch))
    np.testing.assert_allclose(policy.propose(window, 1, seed=SEED).candidates, expected, atol=1e-5)
    many = policy.propose(window, 4, seed=SEED)
    assert many.candidates.shape == (4, *expected.shape[1:])
    assert float(many.metadata["diversity"]) > 1e-3
    assert many.metadata["randomness"] == "whatever the policy draws itself"


def test_the_first_act_candidate_is_the_policys_own_whatever_the_seed(
    load: Callable[..., LeRobotPolicy],
) -> None:
    policy = load("act")
    window = tiny.window(1)
    first = policy.propose(window, 4, seed=1).candidates
    other = policy.propose(window, 4, seed=2).candidates
    np.testing.assert_allclose(first[0], other[0], atol=1e-6)
    assert not np.allclose(first[1:], other[1:], atol=1e-4)


def test_wider_latents_spread_wider(load: Callable[..., LeRobotPolicy]) -> None:
    policy = load("act")
    narrow, wide = (
        float(
            policy.propose(tiny.window(1), 8, seed=1, options={"latent_std": value}).metadata[
                "diversity"
            ]
        )
        for value in ("0.1", "2.0")
    )
    assert narrow < wide / 5


@pytest.mark.parametrize(("kind", "steps"), [("diffusion", "2"), ("smolvla", "2")])
def test_inference_steps_of_one_request(
    kind: str, steps: str, load: Callable[..., LeRobotPolicy]
) -> None:
    policy = load(kind)
    window = tiny.window(policy.history)
    usual = policy.propose(window, 2, seed=1)
    quick = policy.propose(window, 2, seed=1, options={"num_inference_steps": steps})
    assert quick.metadata["num_inference_steps"] == steps
    assert not np.array_equal(quick.candidates, usual.candidates)
    after = policy.propose(window, 2, seed=1)
    assert after.metadata["num_inference_steps"] == usual.metadata["num_inference_steps"]
    np.testing.assert_array_equal(after.candidates, usual.candidates)


def test_a_cold_soft_max_gives_one_code(load: Callable[..., LeRobotPolicy]) -> None:
    policy = load("vqbet")
    cold = policy.propose(tiny.window(5), 6, seed=1, options={"temperature": "0.0001"})
    assert float(cold.metadata["diversity"]) == pytest.approx(0.0, abs=1e-6)
    warm = policy.propose(tiny.window(5), 6, seed=1)
    assert float(warm.metadata["diversity"]) > 0.01


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("act", {"num_inference_steps": "3"}, "latent_std for a policy of type act"),
        ("act", {"latent_std": "0"}, "above 0"),
        ("act", {"latent_std": "wide"}, "a finite number"),
        ("act", {"latent_std": "nan"}, "a finite number"),
        ("diffusion", {"num_inference_steps": "0"}, "1 to 100"),
        ("diffusion", {"num_inference_steps": "2.5"}, "a whole number"),
        ("vqbet", {"temperature": "-1"}, "above 0"),
        ("tdmpc", {"temperature": "1"}, "no options"),
        ("smolvla", {"num_inference_steps": "1001"}, "1 to 1000"),
    ],
)
def test_an_option_is_used_or_refused(
    kind: str, options: dict[str, str], expected: str, load: Callable[..., LeRobotPolicy]
) -> None:
    message = refused(load(kind), ErrorCode.INVALID_ARGUMENT, options=options)
    assert expected in message
    assert next(iter(options)) in message


@pytest.mark.parametrize("kind", STOCHASTIC_CHUNKS)
def test_select_action_is_the_first_action_of_the_chunk(
    kind: str, load: Callable[..., LeRobotPolicy]
) -> None:
    policy = load(kind)
    window = tiny.window(policy.history)
    chunk = policy.propose(window, 3, seed=1, mode="predict_chunk")
    action = policy.propose(window, 3, seed=1, mode="select_action")
    assert action.metadata["mode"] == "select_action"
    np.testing.assert_array_equal(action.candidates, chunk.candidates[:, :1])
    assert "mode select_action" in refused(
        policy, ErrorCode.HORIZON_INVALID, mode="select_action", horizon=2
    )


def test_a_policy_without_chunks(load: Callable[..., LeRobotPolicy]) -> None:
    policy = load(tiny.SINGLE)
    proposal = policy.propose(tiny.window(1), 4, seed=1)
    assert proposal.candidates.shape == (4, 1, 2)
    assert len(np.unique(proposal.candidates[:, 0, 0])) == 4
    assert proposal.metadata["mode"] == "select_action"
    assert f"select_action for a policy of type {tiny.SINGLE}" in refused(
        policy, ErrorCode.POLICY_MODE_UNSUPPORTED, mode="predict_chunk"
    )
    assert "'dream'" in refused(policy, ErrorCode.POLICY_MODE_UNSUPPORTED, mode="dream")


@pytest.mark.parametrize(
    ("kind", "changes"), [("act", {"use_vae": False}), ("tdmpc", {"use_mpc": False})]
)
def test_a_policy_without_randomness_says_so(
    kind: str, changes: dict[str, Any], load: Callable[..., LeRobotPolicy]
) -> None:
    policy = load(kind, **changes)
    proposal = policy.propose(tiny.window(1), 1, seed=1)
    assert proposal.metadata["randomness"] == "none"
    message = refused(policy, ErrorCode.DETERMINISTIC_POLICY, num_candidates=2)
    assert "one answer" in message


def test_the_instruction_reaches_a_policy_that_follows_one(
    load: Callable[..., LeRobotPolicy],
) -> None:
    policy = load("smolvla")
    window = tiny.window(1)
    own = policy.propose(window, 1, seed=1).candidates
    same = [Observation(**{**vars(window[0]), "task": tiny.robot().task})]
    np.testing.assert_array_equal(policy.propose(same, 1, seed=1).candidates, own)
    other = [Observation(**{**vars(window[0]), "task": "reach for the ball"})]
    assert not np.array_equal(policy.propose(other, 1, seed=1).candidates, own)


def test_metadata_is_json_compatible_and_bounded(load: Callable[..., LeRobotPolicy]) -> None:
    policy = load("act")
    proposal = policy.propose(tiny.window(1), 5, seed=1, horizon=4)
    assert all(isinstance(value, str) for value in proposal.metadata.values())
    raw = json.loads(proposal.metadata["raw_action"])
    assert raw["type"] == "Tensor"
    assert raw["shape"] == [5, 6, 2]
    assert raw["dtype"] == "float32"
    assert np.shape(raw["preview"]) == (3, 3, 2)
    unscaled = np.array(raw["preview"])
    np.testing.assert_allclose((unscaled - OFFSET) / SCALE, proposal.candidates[:3, :3], atol=1e-5)
    assert json.loads(proposal.metadata["contract"]) == {
        "tag": "tiny",
        "joints": ["shoulder", "elbow"],
        "action_dim": 2,
        "horizon": 4,
        "step_s": 0.1,
        "action": "absolute",
        "units": ["rad", "rad"],
    }
    assert proposal.metadata["loader_mode"] == "config"


class Injected:
    """A policy that answers with what a test gives it."""

    def __init__(self, answer: Callable[[int], Any], **config: Any) -> None:
        self.config = SimpleNamespace(
            **{
                "type": "injected",
                "n_obs_steps": 1,
                "chunk_size": 3,
                "image_features": {},
                **config,
            }
        )
        self.answer = answer
        self.resets = 0
        self.weight = torch.zeros(1)

    def parameters(self) -> Iterator[Any]:
        return iter([self.weight])

    def reset(self) -> None:
        self.resets += 1

    def predict_action_chunk(self, batch: dict[str, Any]) -> Any:
        return self.answer(len(batch["observation.state"]))


def injected(
    answer: Callable[[int], Any], post: Callable[[Any], Any] = lambda x: x
) -> LeRobotPolicy:
    loaded = LoadedPolicy(
        policy=Injected(answer), preprocessor=dict, postprocessor=post, name="fake"
    )
    return LeRobotPolicy(loaded, tiny.robot(), torch.device("cpu"))


def random_chunk(count: int) -> Any:
    return torch.randn(count, 3, 2)


def test_an_injected_policy_says_that_it_is_one() -> None:
    policy = injected(random_chunk)
    proposal = policy.propose(tiny.window(1), 4, seed=1)
    assert proposal.candidates.shape == (4, 3, 2)
    assert proposal.metadata["loader_mode"] == "injected"
    assert policy.model_id == "fake@injected"


def test_an_injected_loader() -> None:
    def loader(name: str, device: Any) -> LoadedPolicy:
        policy = Injected(random_chunk, action_feature=SimpleNamespace(shape=(2,)))
        policy.requires_grad_ = lambda on: policy  # type: ignore[attr-defined]
        return LoadedPolicy(policy, dict, lambda x: x, name)

    policy = load_lerobot_policy("anything", tiny.robot(), loader=loader)
    assert policy.model_id == "anything@injected"
    assert policy.propose(tiny.window(1), 2, seed=0).candidates.shape == (2, 3, 2)


def test_copies_are_not_candidates() -> None:
    policy = injected(lambda count: torch.ones(count, 3, 2))
    assert policy.propose(tiny.window(1), 1).candidates.shape == (1, 3, 2)
    refused(policy, ErrorCode.DETERMINISTIC_POLICY, num_candidates=3)


def test_a_candidate_that_is_not_finite_is_dropped_and_named() -> None:
    def answer(count: int) -> Any:
        chunk = random_chunk(count)
        chunk[1, 2, 0] = torch.nan
        chunk[3, 0, 1] = torch.inf
        return chunk

    policy = injected(answer)
    proposal = policy.propose(tiny.window(1), 5, seed=1)
    assert proposal.candidates.shape == (3, 3, 2)
    assert np.isfinite(proposal.candidates).all()
    assert proposal.metadata["dropped"] == "1,3"
    assert proposal.metadata["requested"] == "5"
    # What is not finite only after the asked horizon is not executed.
    short = policy.propose(tiny.window(1), 5, seed=1, horizon=2)
    assert short.metadata["dropped"] == "3"
    hopeless = injected(lambda count: random_chunk(count) * torch.nan)
    assert "any of 4 candidates" in refused(hopeless, ErrorCode.MODEL_FAILED, num_candidates=4)


def test_a_policy_that_raises() -> None:
    def answer(count: int) -> Any:
        raise ZeroDivisionError("no\nway")

    message = refused(injected(answer), ErrorCode.MODEL_FAILED)
    assert "ZeroDivisionError (no way)" in message


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ([[[0.0, 1.0], [2.0]]], ErrorCode.TENSOR_SHAPE_MISMATCH),
        ([[["left", "right"]]], ErrorCode.TENSOR_SHAPE_MISMATCH),
        ([[["1", "2"]]], ErrorCode.TENSOR_SHAPE_MISMATCH),
        ([[[True, False]]], ErrorCode.TENSOR_SHAPE_MISMATCH),
        ([[[10**400, 0]]], ErrorCode.TENSOR_SHAPE_MISMATCH),
        ([[0.0, 1.0]], ErrorCode.TENSOR_SHAPE_MISMATCH),
        ([[[0.0, 1.0]]] * 2, ErrorCode.TENSOR_SHAPE_MISMATCH),
        ([[[0.0, 1.0, 2.0]]], ErrorCode.ACTION_DIM_MISMATCH),
        (np.zeros((1, 0, 2)), ErrorCode.TENSOR_SHAPE_MISMATCH),
    ],
)
def test_an_answer_of_another_shape_is_refused(answer: Any, code: ErrorCode) -> None:
    policy = injected(random_chunk, post=lambda chunk: answer)
    assert "raw policy action" in refused(policy, code)


def test_fewer_actions_than_asked_for_are_not_made_up() -> None:
    policy = injected(lambda count: torch.randn(count, 2, 2))
    assert policy.propose(tiny.window(1), 2).candidates.shape == (2, 2, 2)
    assert "1 to 2" in refused(policy, ErrorCode.HORIZON_INVALID, horizon=3)


def test_what_float32_cannot_hold_is_dropped() -> None:
    chunk = np.zeros((3, 3, 2))
    chunk[1, 1, 1] = 1e300
    proposal = injected(random_chunk, post=lambda _: chunk).propose(tiny.window(1), 3)
    assert proposal.candidates.shape == (2, 3, 2)
    assert proposal.metadata["dropped"] == "1"


def test_what_the_preprocessor_adds_reaches_the_policy() -> None:
    seen: dict[str, Any] = {}

    def answer(count: int) -> Any:
        return random_chunk(count)

    class Curious(Injected):
        def predict_action_chunk(self, batch: dict[str, Any]) -> Any:
            seen.update(batch)
            return super().predict_action_chunk(batch)

    def before(inputs: dict[str, Any]) -> dict[str, Any]:
        return {**inputs, "domain_id": torch.tensor([7]), "action": None, "next.reward": 0.0}

    loaded = LoadedPolicy(Curious(answer), before, lambda chunk: chunk, "curious")
    LeRobotPolicy(loaded, tiny.robot(), torch.device("cpu")).propose(tiny.window(1), 3)
    assert seen["domain_id"].tolist() == [7, 7, 7]
    assert seen["task"] == [tiny.robot().task] * 3
    assert not {"action", "next.reward"} & seen.keys()


def test_warming_up_finds_out_that_a_policy_is_not_random() -> None:
    policy = injected(lambda count: torch.ones(count, 3, 2))
    assert policy.stochastic
    policy.warm_up(tiny.window(1), 8)
    assert not policy.stochastic
    assert policy.propose(tiny.window(1), 1).metadata["randomness"] == "none"
    with pytest.raises(WorldForgeError) as caught:
        injected(lambda count: torch.ones(count, 3, 5)).warm_up(tiny.window(1), 8)
    assert caught.value.code is ErrorCode.ACTION_DIM_MISMATCH


@pytest.mark.parametrize(
    ("kind", "module", "options"),
    [
        ("act", "model.action_head", {"latent_std": "2"}),
        ("diffusion", "diffusion.unet", {"num_inference_steps": "2"}),
        ("vqbet", "vqbet.action_head.map_to_cbet_preds_offset", {"temperature": "9"}),
        ("tdmpc", "model._dynamics", {}),
        ("smolvla", "model.action_out_proj", {"num_inference_steps": "2"}),
    ],
)
def test_a_failure_in_the_middle_leaves_nothing_behind(
    kind: str, module: str, options: dict[str, str], load: Callable[..., LeRobotPolicy]
) -> None:
    policy = load(kind)
    window = tiny.window(policy.history)
    before = policy.propose(window, 3, seed=1)

    def fail(module: Any, arguments: Any) -> None:
        raise RuntimeError("broken")

    hook = policy._loaded.policy.get_submodule(module).register_forward_pre_hook(fail)
    try:
        assert "broken" in refused(
            policy, ErrorCode.MODEL_FAILED, num_candidates=3, seed=1, options=options
        )
    finally:
        hook.remove()
    after = policy.propose(window, 3, seed=1)
    np.testing.assert_array_equal(after.candidates, before.candidates)
    assert after.metadata["num_inference_steps"] == before.metadata["num_inference_steps"]
    left = [m for m in policy._loaded.policy.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert not left


def test_many_latents_pass_in_slices(
    load: Callable[..., LeRobotPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    from worldforge_ros.policies import samplers

    policy = load("act")
    whole = policy.propose(tiny.window(1), 5, seed=1).candidates
    monkeypatch.setattr(samplers, "_LATENTS_AT_ONCE", 2)
    sliced = policy.propose(tiny.window(1), 5, seed=1).candidates
    np.testing.assert_allclose(sliced, whole, atol=1e-6)


def test_reset_reaches_the_policy() -> None:
    policy = injected(random_chunk)
    before = policy._loaded.policy.resets
    policy.reset()
    assert policy._loaded.policy.resets == before + 1


@pytest.mark.parametrize(
    ("count", "code"),
    [
        (0, ErrorCode.NO_CANDIDATES),
        (-1, ErrorCode.NO_CANDIDATES),
        (10_000, ErrorCode.TOO_MANY_CANDIDATES),
    ],
)
def test_a_count_out_of_range(count: int, code: ErrorCode) -> None:
    refused(injected(random_chunk), code, num_candidates=count)
