"""JEPA-WMS through an injected runtime that keeps upstream's axes and ranges."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the package torch is not installed")

import torch
from torch import nn

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.scorers.contract import ActionSpace
from worldforge_ros.scorers.jepa_wms import (
    LICENCE,
    JepaOptions,
    JepaWmsScorer,
    load_from_hub,
    load_jepa_wms,
)

GRID, DIM, WINDOW = 2, 3, 2
MEAN, STD = (-0.0087, 0.0068), (0.2019, 0.2002)
GOAL_PROPRIO = (250.0, 260.0, 0.0, 0.0)
PROPRIO_MEAN = torch.tensor([236.6, 264.6, -2.9, 2.5])
PROPRIO_STD = torch.tensor([101.1, 87.0, 74.8, 74.1])


class Latents(dict[str, torch.Tensor]):
    """Stands for a TensorDict."""


class Preprocessor:
    """Upstream's names: statistics of one action of the environment, and of the joint state."""

    action_mean = torch.tensor(MEAN)
    action_std = torch.tensor(STD)
    proprio_mean = PROPRIO_MEAN
    proprio_std = PROPRIO_STD

    def normalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
        assert actions.shape[-1] == 2, "statistics are per action of the environment"
        return (actions - self.action_mean) / self.action_std


class VideoWM(nn.Module):
    """The predictor: linear in the last two frames and actions, so that history matters."""

    def __init__(self, use_proprio: bool) -> None:
        super().__init__()
        self.use_proprio = use_proprio
        self.visual = nn.Linear(DIM + 10, DIM)
        self.proprio = nn.Linear(4 + 10, 4)

    def encode_act(self, actions: torch.Tensor) -> torch.Tensor:
        assert actions.ndim == 3
        return actions

    def forward_pred(self, visual: Any, actions: Any, proprio: Any) -> tuple[Any, None, Any]:
        assert visual.shape[1] == actions.shape[1], "one action for each frame"
        assert visual.shape[1] <= WINDOW
        weights = torch.linspace(0.5, 1.0, visual.shape[1])
        seen = (visual * weights[:, None, None, None, None]).cumsum(1)
        done = (actions * weights[:, None]).cumsum(1)
        spread = done[:, :, None, None, None].expand(*visual.shape[:-1], actions.shape[-1])
        ahead = torch.tanh(self.visual(torch.cat([seen, spread], dim=-1)))
        felt = None
        if proprio is not None:
            felt = torch.tanh(self.proprio(torch.cat([proprio, done], dim=-1)))
        return ahead, None, felt


class EncPredWM(nn.Module):
    """Upstream's wrapper: encode, and unroll from one frame, time first."""

    def __init__(self, use_proprio: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = VideoWM(use_proprio)
        self.ctxt_window = WINDOW
        self.proprio_mode = "predict_proprio"
        self.encoded = 0

    def encode(self, obs: Any) -> Any:
        self.encoded += 1
        pixels = obs if torch.is_tensor(obs) else obs["visual"]
        assert pixels.ndim == 5
        assert pixels.shape[2] == 3
        assert pixels.max() > 2.0, "0 to 255 is wanted, 0 to 1 would be silently wrong"
        batch, time = pixels.shape[:2]
        pooled = nn.functional.adaptive_avg_pool2d(pixels.flatten(0, 1) / 255.0, GRID)
        visual = pooled.permute(0, 2, 3, 1).reshape(batch, time, 1, GRID, GRID, DIM)
        if torch.is_tensor(obs):
            return visual
        assert obs["proprio"].shape == (batch, time, 4)
        return Latents(visual=visual, proprio=(obs["proprio"] - PROPRIO_MEAN) / PROPRIO_STD)

    def unroll(self, z_ctxt: Any, act_suffix: torch.Tensor) -> Any:
        if type(z_ctxt) is dict:
            return None
        steps, batch, _ = act_suffix.shape
        plain = torch.is_tensor(z_ctxt)
        visual = z_ctxt if plain else z_ctxt["visual"]
        visual = visual.expand(batch, *visual.shape[1:])
        proprio = None if plain else z_ctxt["proprio"].expand(batch, -1, -1)
        actions = self.model.encode_act(act_suffix.permute(1, 0, 2))
        for step in range(steps):
            recent = slice(-WINDOW, None)
            seen, _, felt = self.model.forward_pred(
                visual[:, recent],
                actions[:, : step + 1][:, recent],
                None if proprio is None else proprio[:, recent],
            )
            visual = torch.cat([visual, seen[:, -1:]], dim=1)
            if proprio is not None:
                proprio = torch.cat([proprio, felt[:, -1:]], dim=1)
        if proprio is None:
            return visual.transpose(0, 1)
        return Latents(visual=visual.transpose(0, 1), proprio=proprio.transpose(0, 1))


def embodiment_of(history: int = 1) -> Embodiment:
    pusht = load_embodiment("pusht")
    spec = dataclasses.replace(pusht.world_model, history=history)
    return dataclasses.replace(pusht, world_model=spec)


def picture(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def observations(count: int = 1) -> list[Observation]:
    return [
        Observation(
            1_000_000_000 + 500_000_000 * index,
            {"top": picture(index)},
            np.array([0.2, 0.3]) + 0.01 * index,
            np.array([0.05, -0.02]),
        )
        for index in range(count)
    ]


GOAL = picture(99)


def load(
    model: Any = None, history: int = 1, preprocessor: Any = None, **options: Any
) -> JepaWmsScorer:
    given = {"model": "jepa_wm_pusht", "repository": "", "goal_proprio": GOAL_PROPRIO, **options}
    with pytest.warns(UserWarning, match="CC BY-NC"):
        return load_jepa_wms(
            embodiment_of(history),
            JepaOptions(**given),
            lambda _: (EncPredWM() if model is None else model, preprocessor or Preprocessor()),
        )


def blocks_of(samples: int, horizon: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(samples).normal(size=(samples, horizon, 10))


def by_hand(
    model: EncPredWM, blocks: np.ndarray[Any, Any], objective: str, weight: float = 0.1
) -> np.ndarray[Any, Any]:
    """One candidate after the other, each compared with the same goal."""
    now = observations()[0]
    image = torch.from_numpy(now.images["top"]).permute(2, 0, 1)[None, None].float()
    goal = torch.from_numpy(GOAL).permute(2, 0, 1)[None, None].float()
    state = torch.tensor(
        [[[*(1000.0 * now.position), *(1000.0 * now.velocity)]]], dtype=torch.float32
    )
    found = []
    with torch.no_grad():
        target = model.encode({"visual": goal, "proprio": torch.tensor([[GOAL_PROPRIO]])})
        for block in blocks:
            z = model.encode({"visual": image, "proprio": state})
            ahead = model.unroll(z, torch.from_numpy(block).float()[:, None])
            cost = 0.0
            for part, share in (("visual", 1.0), ("proprio", weight)):
                difference = ahead[part][-1, 0] - target[part][0, 0]
                value = difference.square() if objective == "l2" else difference.abs()
                cost += share * float(value.mean())
            found.append(cost)
    return np.array(found)


@pytest.mark.parametrize("objective", ["l2", "l1"])
# As many candidates as frames of the horizon, as many as the batch, and others.
@pytest.mark.parametrize("samples", [1, 3, 4, 7])
def test_each_candidate_is_compared_with_the_same_goal(samples: int, objective: str) -> None:
    model = EncPredWM()
    scorer = load(model, chunk=4)
    blocks = blocks_of(samples)
    found = scorer.score(observations(), GOAL, blocks, objective=objective, space=ActionSpace.MODEL)
    np.testing.assert_allclose(found.costs, by_hand(model, blocks, objective), rtol=1e-5)
    assert found.best_index == int(np.argmin(found.costs))
    assert found.metadata["runtime"] == "unroll"
    assert found.metadata["proprio_weight"] == "0.1"
    assert found.metadata["licence"] == "CC BY-NC 4.0"
    assert len(found.metadata["sha256"]) == 64


def test_set_points_are_normalised_with_the_preprocessors_statistics() -> None:
    scorer = load()
    now = observations()[0]
    setpoints = scorer.bridge.blocks_to_setpoints(blocks_of(4), now.position, now.velocity)
    direct = scorer.score([now], GOAL, blocks_of(4), space=ActionSpace.MODEL)
    np.testing.assert_allclose(scorer.score([now], GOAL, setpoints).costs, direct.costs, rtol=1e-5)
    raw = blocks_of(4).reshape(4, 3, 5, 2) * np.array(STD) + np.array(MEAN)
    unnormalised = load(actions_are_normalized=False).score(
        [now], GOAL, raw.reshape(4, 3, 10), space=ActionSpace.MODEL
    )
    np.testing.assert_allclose(unnormalised.costs, direct.costs, rtol=1e-4)


def test_the_proprioceptive_term_has_its_weight() -> None:
    model = EncPredWM()
    blocks = blocks_of(5)
    for weight in (0.0, 0.1, 3.0):
        found = load(model, proprio_weight=weight).score(
            observations(), GOAL, blocks, space=ActionSpace.MODEL
        )
        np.testing.assert_allclose(found.costs, by_hand(model, blocks, "l2", weight), rtol=1e-5)
    visual = load(EncPredWM(use_proprio=False), goal_proprio=())
    found = visual.score(observations(), GOAL, blocks, space=ActionSpace.MODEL)
    assert found.metadata["proprio_weight"] == "0"
    with pytest.raises(WorldForgeError, match="goal_proprio is 0 numbers; expected 4") as info:
        load_jepa_wms(
            embodiment_of(),
            JepaOptions("jepa_wm_pusht", ""),
            lambda _: (EncPredWM(), Preprocessor()),
        )
    assert info.value.code is ErrorCode.INVALID_ARGUMENT
    bare = dataclasses.replace(
        embodiment_of(), world_model=dataclasses.replace(embodiment_of().world_model, proprio=None)
    )
    with pytest.raises(WorldForgeError, match=r"world_model\.proprio") as info:
        load_jepa_wms(
            bare, JepaOptions("jepa_wm_pusht", ""), lambda _: (EncPredWM(), Preprocessor())
        )
    assert info.value.code is ErrorCode.EMBODIMENT_MISMATCH


def test_the_action_history_is_used() -> None:
    model = EncPredWM()
    scorer = load(model, history=2)
    scene, blocks = observations(2), blocks_of(4)
    past = np.random.default_rng(5).normal(size=(1, 10))
    found = scorer.score(scene, GOAL, blocks, past, space=ActionSpace.MODEL).costs
    other = scorer.score(scene, GOAL, blocks, past + 1.0, space=ActionSpace.MODEL).costs
    assert (np.abs(found - other) > 1e-4).all()
    # By hand for one candidate: frames 0 and 1 with the action between them, then its own.
    pixels = torch.stack([torch.from_numpy(o.images["top"]).permute(2, 0, 1) for o in scene])
    state = np.stack([np.concatenate([1000 * o.position, 1000 * o.velocity]) for o in scene])
    with torch.no_grad():
        z = model.encode(
            {"visual": pixels[None].float(), "proprio": torch.from_numpy(state)[None].float()}
        )
        target = model.encode(
            {
                "visual": torch.from_numpy(GOAL).permute(2, 0, 1)[None, None].float(),
                "proprio": torch.tensor([[GOAL_PROPRIO]]),
            }
        )
        visual, proprio = z["visual"], z["proprio"]
        actions = torch.from_numpy(np.concatenate([past, blocks[2]])).float()[None]
        for known in (2, 3, 4):
            seen, _, felt = model.model.forward_pred(
                visual[:, -2:], actions[:, known - 2 : known], proprio[:, -2:]
            )
            visual = torch.cat([visual, seen[:, -1:]], dim=1)
            proprio = torch.cat([proprio, felt[:, -1:]], dim=1)
        cost = (visual[0, -1] - target["visual"][0, 0]).square().mean()
        cost = cost + 0.1 * (proprio[0, -1] - target["proprio"][0, 0]).square().mean()
    assert found[2] == pytest.approx(float(cost), rel=1e-5)
    for bad in (None, past[:0], np.zeros((2, 10)), np.full((1, 10), np.nan)):
        with pytest.raises(WorldForgeError) as info:
            scorer.score(scene, GOAL, blocks, bad, space=ActionSpace.MODEL)
        assert info.value.code is ErrorCode.ACTION_HISTORY_INVALID


def test_one_frame_through_the_own_loop_equals_upstreams_unroll() -> None:
    model = EncPredWM()
    scorer = load(model)
    actions = torch.from_numpy(blocks_of(4)).float()
    with torch.no_grad():
        z = model.encode(scorer._context(observations()))
        upstream = scorer._unrolled(z, np.empty((0, 10)), actions)
        own = scorer._with_history(z, np.empty((0, 10)), actions)
    for part in ("visual", "proprio"):
        torch.testing.assert_close(own[part], upstream[part])


def test_scenes_are_encoded_once() -> None:
    model = EncPredWM()
    scorer = load(model)
    scorer.notice(observations()[0])
    scorer.notice_goal(GOAL)
    assert model.encoded == 2
    found = scorer.score(observations(), GOAL, blocks_of(3), space=ActionSpace.MODEL)
    assert model.encoded == 2
    assert found.metadata["history_cached"] == "1 of 1"
    assert found.metadata["goal_cached"] == "true"
    other = scorer.score(observations(), picture(5), blocks_of(3), space=ActionSpace.MODEL)
    assert other.metadata["goal_cached"] == "false"
    assert (other.costs != found.costs).all()


class Native:
    """A runtime with a scoring method of its own."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: dict[str, Any] = {}

    def score_action_candidates(self, **arguments: Any) -> Any:
        self.asked = arguments
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def compute_scores(self, **arguments: Any) -> Any:
        raise AssertionError("score_action_candidates comes first")


@pytest.mark.parametrize(
    ("answer", "best"),
    [
        ([3.0, 1.0, 1.0], 1),
        (torch.tensor([[3.0, 1.0, 1.0]]), 1),
        (torch.tensor([[3.0], [1.0], [float("nan")]]), 1),
        ({"scores": np.array([3.0, 1.0, 1.0]), "best_index": 2}, 2),
        ({"scores": [3.0, 1.0, 1.0], "lower_is_better": True}, 1),
    ],
)
def test_native_scoring_methods_come_first(answer: Any, best: int) -> None:
    runtime = Native(answer)
    scorer = load(runtime)
    found = scorer.score(observations(), GOAL, blocks_of(3), space=ActionSpace.MODEL)
    assert found.best_index == best
    assert found.metadata["runtime"] == "score_action_candidates"
    assert runtime.asked["actions"].shape == (1, 3, 3, 10)
    assert runtime.asked["observation"].shape == (1, 1, 3, 96, 96)
    assert float(runtime.asked["goal"].max()) > 2.0
    assert runtime.asked["objective"] == "l2"


@pytest.mark.parametrize(
    ("answer", "code", "named"),
    [
        (
            {"error": {"type": "OutOfMemory", "message": "no room"}},
            ErrorCode.MODEL_FAILED,
            "OutOfMemory: no room",
        ),
        ({"error": "boom"}, ErrorCode.MODEL_FAILED, "boom"),
        (RuntimeError("shape mismatch"), ErrorCode.MODEL_FAILED, "RuntimeError: shape mismatch"),
        ({"costs": [1.0]}, ErrorCode.COSTS_INVALID, "expected scores"),
        (
            {"scores": [1.0, 2.0, 3.0], "lower_is_better": False},
            ErrorCode.COSTS_INVALID,
            "lower is better",
        ),
        ([[1.0, 2.0], [3.0, 4.0]], ErrorCode.COSTS_INVALID, "shape"),
        ([1.0, 2.0], ErrorCode.COSTS_INVALID, "shape"),
        ([np.nan] * 3, ErrorCode.COSTS_INVALID, "not finite for all 3"),
        ({"scores": [1.0, 2.0, 3.0], "best_index": 3}, ErrorCode.COSTS_INVALID, "best index 3"),
    ],
)
def test_what_a_runtime_gets_wrong_is_an_error(answer: Any, code: ErrorCode, named: str) -> None:
    scorer = load(Native(answer))
    with pytest.raises(WorldForgeError, match=named) as info:
        scorer.score(observations(), GOAL, blocks_of(3), space=ActionSpace.MODEL)
    assert info.value.code is code


def test_what_a_native_method_does_not_take_is_not_dropped() -> None:
    class Plain:
        def score_actions(self, observation: Any, goal: Any, actions: Any) -> Any:
            return [1.0] * actions.shape[1]

    plain = load(Plain()).score(observations(), GOAL, blocks_of(3), space=ActionSpace.MODEL)
    assert plain.metadata["objective"] == "the runtime's own"
    past = np.zeros((1, 10))
    with pytest.raises(WorldForgeError) as info:
        load(Plain(), history=2).score(
            observations(2), GOAL, blocks_of(3), past, space=ActionSpace.MODEL
        )
    assert info.value.code is ErrorCode.ACTION_HISTORY_INVALID
    with pytest.raises(WorldForgeError) as info:
        load(Plain()).score(
            observations(), GOAL, blocks_of(3), objective="l1", space=ActionSpace.MODEL
        )
    assert info.value.code is ErrorCode.OBJECTIVE_UNKNOWN


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"actions_are_normalized": 1}, ErrorCode.INVALID_ARGUMENT),
        ({"actions_are_normalized": "true"}, ErrorCode.INVALID_ARGUMENT),
        ({"trust_repository": None}, ErrorCode.INVALID_ARGUMENT),
        ({"objective": "cosine"}, ErrorCode.OBJECTIVE_UNKNOWN),
        ({"proprio_weight": -1.0}, ErrorCode.INVALID_ARGUMENT),
        ({"goal_proprio": (np.nan,)}, ErrorCode.INVALID_ARGUMENT),
        ({"chunk": 0}, ErrorCode.INVALID_ARGUMENT),
    ],
)
def test_bad_options(options: dict[str, Any], code: ErrorCode) -> None:
    with pytest.raises(WorldForgeError) as info:
        JepaOptions("jepa_wm_pusht", "", **options)
    assert info.value.code is code


def test_a_runtime_without_the_interface_is_refused() -> None:
    with pytest.raises(WorldForgeError, match="without encode") as info:
        load_jepa_wms(embodiment_of(), JepaOptions("x", ""), lambda _: (object(), Preprocessor()))
    assert info.value.code is ErrorCode.CHECKPOINT_INVALID
    with pytest.raises(WorldForgeError, match="action_mean of the preprocessor") as info:
        load_jepa_wms(embodiment_of(), JepaOptions("x", ""), lambda _: (EncPredWM(), object()))
    assert info.value.code is ErrorCode.ACTION_STATISTICS_MISSING
    assert "CC BY-NC" in LICENCE


def hub(folder: Path, body: str) -> str:
    (folder / "hubconf.py").write_text(body)
    return str(folder)


@pytest.mark.parametrize(
    ("prepare", "trusted", "code", "named"),
    [
        (lambda _: "", True, ErrorCode.CHECKPOINT_MISSING, "JEPA_WMS_MODEL_PATH"),
        (lambda _: "/no/such/folder", True, ErrorCode.CHECKPOINT_MISSING, "folder that exists"),
        (str, True, ErrorCode.CHECKPOINT_MISSING, "without hubconf.py"),
        (
            lambda _: "facebookresearch/jepa-wms",
            True,
            ErrorCode.CHECKPOINT_UNTRUSTED,
            "40 hex digits",
        ),
        (
            lambda _: "facebookresearch/jepa-wms:main",
            True,
            ErrorCode.CHECKPOINT_UNTRUSTED,
            "40 hex digits",
        ),
        (
            lambda folder: hub(folder, "raise SystemExit('ran')"),
            False,
            ErrorCode.CHECKPOINT_UNTRUSTED,
            "trust_repository is false",
        ),
        (
            lambda folder: hub(folder, "import no_such_module_here"),
            True,
            ErrorCode.DEPENDENCY_MISSING,
            "no_such_module_here",
        ),
        (
            lambda folder: hub(folder, "def jepa_wm_wall(**_):\n    pass"),
            True,
            ErrorCode.CHECKPOINT_INVALID,
            "jepa_wm_pusht",
        ),
        (
            lambda folder: hub(folder, "def jepa_wm_pusht(**_):\n    return 1"),
            True,
            ErrorCode.CHECKPOINT_INVALID,
            "model, preprocessor",
        ),
    ],
)
def test_repositories_that_are_refused(
    tmp_path: Path,
    prepare: Callable[[Path], str],
    trusted: bool,
    code: ErrorCode,
    named: str,
) -> None:
    options = JepaOptions("jepa_wm_pusht", prepare(tmp_path), trust_repository=trusted)
    with pytest.raises(WorldForgeError, match=named) as info:
        load_from_hub(options)
    assert info.value.code is code


def test_the_hash_of_the_parameters_can_be_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from worldforge_ros.scorers.loading import load_scorer, scorer_config

    model = EncPredWM()
    model.register_buffer("scalar", torch.tensor(3))
    monkeypatch.setattr(
        "worldforge_ros.scorers.jepa_wms.load_jepa_wms",
        lambda embodiment, options: load(model),
    )
    digest = load(model).facts["sha256"]
    for wanted, works in ((digest, True), (digest.upper(), True), ("0" * 64, False)):
        config = scorer_config("jepa_wms", {"model_path": "x"}, {}, sha256=wanted)
        if works:
            assert load_scorer(config, embodiment_of()).facts["sha256"] == digest
            continue
        with pytest.raises(WorldForgeError) as info:
            load_scorer(config, embodiment_of())
        assert info.value.code is ErrorCode.CHECKPOINT_UNTRUSTED


def test_a_local_repository_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("runtime_for_this_test")
    module.make = lambda: (EncPredWM(), Preprocessor())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "runtime_for_this_test", module)
    repository = hub(
        tmp_path,
        "import runtime_for_this_test\n"
        "def jepa_wm_pusht(pretrained=True, device='cuda:0'):\n"
        "    assert device == 'cpu'\n"
        "    return runtime_for_this_test.make()\n",
    )
    options = JepaOptions(
        "jepa_wm_pusht", repository, trust_repository=True, goal_proprio=GOAL_PROPRIO
    )
    with pytest.warns(UserWarning, match="CC BY-NC"):
        scorer = load_jepa_wms(embodiment_of(), options)
    found = scorer.score(observations(), GOAL, blocks_of(3), space=ActionSpace.MODEL)
    np.testing.assert_allclose(found.costs, by_hand(EncPredWM(), blocks_of(3), "l2"), rtol=1e-5)
