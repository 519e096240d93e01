"""The published architecture at full size on random weights, against upstream's own ``get_cost``;
and every trap of calling upstream directly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the package torch is not installed")
pytest.importorskip("stable_worldmodel", reason="the package stable-worldmodel is not installed")

import torch
from stable_worldmodel.wm.lewm import LeWM
from torch import nn

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation
from worldforge_ros.scorers.architecture import build_lewm, published_config
from worldforge_ros.scorers.contract import ActionSpace
from worldforge_ros.scorers.lewm import LeWMOptions, LeWMScorer, load_lewm

LEWM_PACKAGE = sys.modules["stable_worldmodel.wm.lewm"]
BLOCKS = np.random.default_rng(1).normal(size=(6, 5, 10))
PAST = np.random.default_rng(2).normal(size=(2, 10))


def embodiment_of(history: int = 1) -> Embodiment:
    """PushT with a 224-pixel camera, so that no resizing can differ, and its own statistics."""
    pusht = load_embodiment("pusht")
    spec = pusht.world_model
    action = dataclasses.replace(spec.action, mean=(-0.0087, 0.0068), std=(0.2019, 0.2002))
    camera = dataclasses.replace(pusht.cameras["top"], width=224, height=224)
    return dataclasses.replace(
        pusht,
        cameras={"top": camera},
        world_model=dataclasses.replace(spec, action=action, history=history),
    )


def picture(seed: int) -> np.ndarray[Any, Any]:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((32, 32, 1), np.uint8))


def observations(count: int, seed: int = 0) -> list[Observation]:
    return [
        Observation(
            1_000_000_000 + 500_000_000 * index,
            {"top": picture(seed + index)},
            np.array([0.2, 0.3]),
            np.zeros(2),
        )
        for index in range(count)
    ]


GOAL = picture(99)


@pytest.fixture(scope="module")
def reference() -> Any:
    """Upstream's model with random weights everywhere, BatchNorm statistics included."""
    torch.manual_seed(0)
    model = build_lewm(published_config(10))
    for name, value in model.named_parameters():
        # As they come, neither actions nor pictures would matter much.
        if value.ndim > 1:
            nn.init.normal_(value, std=value[0].numel() ** -0.5)
        elif "adaLN" in name:
            nn.init.normal_(value, std=0.5)
    for name, value in model.named_buffers():
        if "running_mean" in name:
            nn.init.normal_(value, std=0.1)
        elif "running_var" in name:
            nn.init.uniform_(value, 0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def hub(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the hub: config.json and weights.pt, nothing else."""
    folder = tmp_path_factory.mktemp("hub") / "lewm-pusht"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published_config(10)))
    torch.save(reference.state_dict(), folder / "weights.pt")
    return folder


def pixels(images: list[np.ndarray[Any, Any]]) -> torch.Tensor:
    """uint8 to [0, 1] to ImageNet's mean and deviation, worked out here."""
    values = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).double() / 255.0
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None]
    return ((values - mean) / std).float()


def get_cost(
    model: Any, history: list[Observation], blocks: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Upstream 0.1.1: the blocks between the frames are the first ones of the candidates."""
    samples = len(blocks)
    now, goal = pixels([item.images["top"] for item in history]), pixels([GOAL])
    info = {
        "pixels": now.expand(1, samples, *now.shape),
        "goal": goal.expand(1, samples, *goal.shape),
        "action": torch.zeros(1, samples, len(history), 10),
    }
    with torch.no_grad():
        return np.asarray(model.get_cost(info, torch.from_numpy(blocks).float()[None])[0])


def with_past(blocks: np.ndarray[Any, Any], past: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([np.broadcast_to(past, (len(blocks), *past.shape)), blocks], axis=1)


@pytest.mark.parametrize("backend", ["torch", "openvino", "upstream"])
@pytest.mark.parametrize("history", [1, 3])
def test_costs_equal_upstream(reference: Any, hub: Path, history: int, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the package openvino is not installed")
    scorer = load_lewm(hub, embodiment_of(history), LeWMOptions(backend=backend))
    past = PAST[: history - 1]
    scene = observations(history)
    found = scorer.score(scene, GOAL, BLOCKS, past, space=ActionSpace.MODEL)
    expected = get_cost(reference, scene, with_past(BLOCKS, past))
    assert np.ptp(expected) > 1e-2 * expected.mean(), "the candidates must differ"
    np.testing.assert_allclose(found.costs, expected, rtol=1e-4)
    assert found.best_index == int(expected.argmin())
    assert found.metadata["checkpoint_format"] == "config+pt"
    assert (
        found.metadata["runtime"]
        == {
            "torch": "torch rollout",
            "openvino": "openvino rollout",
            "upstream": "get_cost",
        }[backend]
    )


class FutureLeWM(LeWM):  # type: ignore[misc]
    """The later upstream, written here from its description: no ``get_cost``, candidates strictly
    in the future, executed blocks in ``info["action_history"]``.
    """

    get_cost = None

    def rollout(self, info: dict[str, Any], action_sequence: torch.Tensor) -> dict[str, Any]:
        frames = info["pixels"].shape[2]
        history = info["action_history"]
        assert history.shape[2] == frames - 1
        first = {"pixels": info["pixels"][:, 0]}
        states = self.encode(first)["emb"].repeat(action_sequence.shape[1], 1, 1)
        actions = torch.cat([history[0], action_sequence[0]], dim=1)
        embedded = self.action_encoder(actions)
        for known in range(frames, actions.shape[1] + 1):
            seen = slice(max(0, known - 3), known)
            ahead = self.predict(states[:, seen], embedded[:, seen])[:, -1:]
            states = torch.cat([states, ahead], dim=1)
        return {**info, "predicted_emb": states[None]}


class GoalMSE:
    """As the later upstream describes it."""

    def __call__(self, info: dict[str, Any]) -> torch.Tensor:
        difference = info["predicted_emb"][:, :, -1] - info["goal_emb"][:, None, -1]
        return difference.square().sum(-1)


class ShootingCostEvaluator(nn.Module):
    """As the later upstream describes it."""

    def __init__(self, model: Any, objective: Any) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def get_cost(self, info: dict[str, Any], candidates: torch.Tensor) -> torch.Tensor:
        info["goal_emb"] = self.model.encode({"pixels": info["goal"][:, 0]})["emb"]
        return self.objective(self.model.rollout(info, candidates))


@pytest.fixture
def later_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stable_worldmodel whose models have no get_cost but whose planning module has an
    evaluator.
    """
    planning = types.ModuleType("stable_worldmodel.planning")
    planning.GoalMSE = GoalMSE  # type: ignore[attr-defined]
    planning.ShootingCostEvaluator = ShootingCostEvaluator  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stable_worldmodel.planning", planning)
    monkeypatch.setattr(LEWM_PACKAGE, "LeWM", FutureLeWM)


@pytest.mark.parametrize("history", [1, 3])
def test_the_later_convention_gives_the_same_costs(
    reference: Any, hub: Path, later_upstream: None, history: int
) -> None:
    scorer = load_lewm(hub, embodiment_of(history), LeWMOptions(backend="upstream"))
    past, scene = PAST[: history - 1], observations(history)
    found = scorer.score(scene, GOAL, BLOCKS, past, space=ActionSpace.MODEL)
    assert found.metadata["runtime"] == "ShootingCostEvaluator"
    expected = get_cost(reference, scene, with_past(BLOCKS, past))
    np.testing.assert_allclose(found.costs, expected, rtol=1e-4)
    ours = load_lewm(hub, embodiment_of(history))
    native = ours.score(scene, GOAL, BLOCKS, past, space=ActionSpace.MODEL)
    np.testing.assert_allclose(native.costs, expected, rtol=1e-4)


def test_neither_interface_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LEWM_PACKAGE, "LeWM", FutureLeWM)
    monkeypatch.setitem(sys.modules, "stable_worldmodel.planning", None)
    with pytest.raises(WorldForgeError, match="neither get_cost nor") as info:
        load_lewm(hub, embodiment_of(), LeWMOptions(backend="upstream"))
    assert info.value.code is ErrorCode.DEPENDENCY_MISSING


@pytest.fixture(scope="module")
def scorer(hub: Path) -> LeWMScorer:
    return load_lewm(hub, embodiment_of())


def costs(scorer: LeWMScorer, scene: list[Observation], **arguments: Any) -> np.ndarray[Any, Any]:
    return scorer.score(scene, GOAL, BLOCKS, space=ActionSpace.MODEL, **arguments).costs


def test_trap_of_old_embeddings_in_a_reused_dict(reference: Any, scorer: LeWMScorer) -> None:
    scene, other = observations(1), observations(1, seed=50)
    now = pixels([scene[0].images["top"]]).expand(1, 6, 1, 3, 224, 224)
    goal = pixels([GOAL]).expand(1, 6, 1, 3, 224, 224)
    info = {"pixels": now, "goal": goal, "action": torch.zeros(1, 6, 1, 10)}
    blocks = torch.from_numpy(BLOCKS).float()[None]
    with torch.no_grad():
        first = np.asarray(reference.get_cost(info, blocks)[0])
        info["pixels"] = pixels([other[0].images["top"]]).expand(1, 6, 1, 3, 224, 224)
        again = np.asarray(reference.get_cost(info, blocks)[0])
    np.testing.assert_array_equal(first, again, "upstream has the trap")
    np.testing.assert_allclose(costs(scorer, scene), first, rtol=1e-4)
    expected = get_cost(reference, other, BLOCKS)
    assert (np.abs(expected - first) > 1e-2 * first).any()
    np.testing.assert_allclose(costs(scorer, other), expected, rtol=1e-4)
    upstream = load_lewm_upstream(scorer, reference)
    np.testing.assert_allclose(costs(upstream, scene), first, rtol=1e-4)
    np.testing.assert_allclose(costs(upstream, other), expected, rtol=1e-4)


def load_lewm_upstream(scorer: LeWMScorer, reference: Any) -> LeWMScorer:
    from worldforge_ros.scorers.engines import UpstreamEngine

    engine = UpstreamEngine(
        reference, scorer._preprocessing.pixels, torch.device("cpu"), lambda blocks: 4
    )
    return LeWMScorer(engine, scorer._preprocessing, embodiment_of(), scorer.facts, reference)


def test_trap_of_mixed_goals(reference: Any) -> None:
    """Upstream compares sample i with goal i when there are as many batches as samples."""
    from worldforge_ros.scorers.contract import one_batch

    scene = observations(1)
    now = pixels([scene[0].images["top"]])
    goals = torch.stack([pixels([GOAL]), pixels([picture(7)])])
    info = {
        "pixels": now.expand(2, 2, *now.shape),
        "goal": goals[:, None].expand(2, 2, *goals.shape[1:]),
        "action": torch.zeros(2, 2, 1, 10),
    }
    blocks = torch.from_numpy(BLOCKS[:2]).float().expand(2, 2, 5, 10)
    with torch.no_grad():
        mixed = np.asarray(reference.get_cost(info, blocks))
    right = get_cost(reference, scene, BLOCKS[:2])
    assert not np.allclose(mixed[0], right, rtol=1e-3), "upstream has the trap"
    with pytest.raises(WorldForgeError) as info_:
        one_batch(np.zeros((2, 2, 25, 2), np.float32), most=9, longest=25)
    assert info_.value.code is ErrorCode.BATCH_SIZE_UNSUPPORTED


def test_trap_of_train_mode(reference: Any, hub: Path, scorer: LeWMScorer) -> None:
    fresh = build_lewm(published_config(10))
    assert fresh.training, "a model that was just built trains, and so does load_pretrained's"
    for backend in ("torch", "upstream"):
        loaded = load_lewm(hub, embodiment_of(), LeWMOptions(backend=backend)).model
        assert not any(module.training for module in loaded.modules())
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    one = scorer.score(observations(1), GOAL, BLOCKS[:1], space=ActionSpace.MODEL)
    np.testing.assert_allclose(
        one.costs, get_cost(reference, observations(1), BLOCKS[:1]), rtol=1e-4
    )


def test_trap_of_range_and_resolution(scorer: LeWMScorer) -> None:
    scene = observations(1)
    good = scene[0].images["top"]
    for bad in (good / 255.0, good[::2, ::2], good.transpose(2, 0, 1), good.astype(np.int64)):
        wrong = [dataclasses.replace(scene[0], images={"top": bad})]
        with pytest.raises(WorldForgeError) as info:
            costs(scorer, wrong)
        assert info.value.code is ErrorCode.IMAGE_SIZE_MISMATCH
        with pytest.raises(WorldForgeError) as info:
            scorer.score(scene, bad, BLOCKS, space=ActionSpace.MODEL)
        assert info.value.code is ErrorCode.IMAGE_SIZE_MISMATCH


def test_trap_of_candidates_that_are_not_finite(reference: Any, scorer: LeWMScorer) -> None:
    bad = BLOCKS.copy()
    bad[2, 1, 3] = np.nan
    assert np.isnan(get_cost(reference, observations(1), bad)[2]), "upstream takes them"
    with pytest.raises(WorldForgeError) as info:
        scorer.score(observations(1), GOAL, bad, space=ActionSpace.MODEL)
    assert info.value.code is ErrorCode.TENSOR_NOT_FINITE


def test_trap_of_missing_action_statistics(hub: Path) -> None:
    bare = load_embodiment("pusht")
    with pytest.raises(WorldForgeError, match="without that file; expected 2 numbers") as info:
        load_lewm(hub, bare)
    assert info.value.code is ErrorCode.ACTION_STATISTICS_MISSING


def test_set_points_are_normalised_with_the_embodiments_statistics(
    scorer: LeWMScorer,
) -> None:
    scene = observations(1)
    setpoints = scorer.bridge.blocks_to_setpoints(BLOCKS, scene[0].position, scene[0].velocity)
    np.testing.assert_allclose(
        scorer.score(scene, GOAL, setpoints).costs, costs(scorer, scene), rtol=1e-3
    )
    # By hand: 5 cm to the right in the first step is 0.5 of the model's units.
    target = scene[0].position + np.array([0.05, 0.0])
    blocks = scorer.bridge.setpoints_to_blocks(
        np.tile(target, (1, 5, 1)), scene[0].position, scene[0].velocity
    )
    assert blocks[0, 0, 0] == pytest.approx((0.5 + 0.0087) / 0.2019)
    assert blocks[0, 0, 1] == pytest.approx((0.0 - 0.0068) / 0.2002)


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of the encoder as transformers 5 has them."""
    pairs = (
        ("encoder.encoder.layer.", "encoder.layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    )
    result = {}
    for name, value in state.items():
        new = name
        if name.startswith("encoder.encoder."):
            for old, later in pairs:
                new = new.replace(old, later)
        result[new] = value
    return result


def test_weights_of_either_transformers_load(
    reference: Any, scorer: LeWMScorer, tmp_path: Path
) -> None:
    from worldforge_ros.scorers.architecture import fit_names

    own = reference.state_dict()
    other = renamed(own)
    assert len(set(own) ^ set(other)) == 2 * 12 * 16
    (tmp_path / "config.json").write_text(json.dumps(published_config(10)))
    torch.save(other, tmp_path / "weights.pt")
    loaded = load_lewm(tmp_path, embodiment_of())
    np.testing.assert_array_equal(costs(loaded, observations(1)), costs(scorer, observations(1)))
    assert set(fit_names(own, other.keys())) == set(other), "and the other way round"
    assert set(fit_names(own, own.keys())) == set(own)


def test_le_wms_own_names_build_the_same(reference: Any, hub: Path, tmp_path: Path) -> None:
    config = json.loads((hub / "config.json").read_text())
    config["_target_"] = "jepa.JEPA"
    config["predictor"]["_target_"] = "module.ARPredictor"
    config["action_encoder"]["_target_"] = "module.Embedder"
    for head in ("projector", "pred_proj"):
        config[head]["_target_"] = "module.MLP"
    model = build_lewm(config)
    model.load_state_dict(reference.state_dict())
    config["projector"]["output_dim"] = 128
    with pytest.raises(WorldForgeError, match=r"predictor\.input_dim is 192; expected 128"):
        build_lewm(config)


def test_object_checkpoints_load_by_hash_only(
    reference: Any, scorer: LeWMScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("STABLEWM_HOME", str(home))
    (home / "checkpoints").mkdir(parents=True)
    path = home / "checkpoints" / "lewm_object.ckpt"
    torch.save(nn.ModuleDict({"world_model": reference}), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for wrong in ("", "0" * 64):
        with pytest.raises(WorldForgeError) as info:
            load_lewm("lewm", embodiment_of(), LeWMOptions(sha256=wrong))
        assert info.value.code is ErrorCode.CHECKPOINT_UNTRUSTED
    loaded = load_lewm("lewm", embodiment_of(), LeWMOptions(sha256=digest))
    assert loaded.facts["checkpoint_format"] == "object"
    assert loaded.facts["runtime"] == "get_cost"
    np.testing.assert_allclose(
        costs(loaded, observations(1)), costs(scorer, observations(1)), rtol=1e-4
    )
    # Upstream would prefer a folder of that name, and load what is in it without a hash.
    (home / "checkpoints" / "lewm").mkdir()
    (home / "checkpoints" / "lewm" / "other_object.ckpt").write_bytes(b"not what was hashed")
    again = load_lewm(str(home / "checkpoints"), embodiment_of(), LeWMOptions(sha256=digest))
    np.testing.assert_array_equal(costs(again, observations(1)), costs(loaded, observations(1)))
    (home / "checkpoints" / "lewm" / "other_object.ckpt").unlink()
    (home / "checkpoints" / "lewm").rmdir()
    with pytest.raises(WorldForgeError, match="only its own code can run it"):
        load_lewm("lewm", embodiment_of(), LeWMOptions(sha256=digest, backend="torch"))
    monkeypatch.delattr("stable_worldmodel.policy.AutoCostModel")
    with pytest.raises(WorldForgeError, match="AutoCostModel") as info:
        load_lewm("lewm", embodiment_of(), LeWMOptions(sha256=digest))
    assert info.value.code is ErrorCode.DEPENDENCY_MISSING


def test_memory_is_bounded_by_chunks(hub: Path, scorer: LeWMScorer) -> None:
    small = load_lewm(hub, embodiment_of(), LeWMOptions(memory=1_000_000))
    assert small._engine._chunk(5) == 2  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        costs(small, observations(1)), costs(scorer, observations(1)), rtol=1e-4
    )


def test_lower_precision_is_opt_in_and_says_so(hub: Path, scorer: LeWMScorer) -> None:
    lower = load_lewm(hub, embodiment_of(), LeWMOptions(precision="bfloat16"))
    assert lower.facts["precision"] == "bfloat16"
    assert scorer.facts["precision"] == "float32"
    found, exact = costs(lower, observations(1)), costs(scorer, observations(1))
    assert (found != exact).any()
    np.testing.assert_allclose(found, exact, rtol=0.1)
    with pytest.raises(WorldForgeError, match="precision of backend upstream"):
        LeWMOptions(backend="upstream", precision="bfloat16")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"threads": 0}, "threads"),
        ({"memory": 0}, "memory"),
        ({"backend": "onnx"}, "backend"),
        ({"precision": "int8"}, "precision"),
        ({"backend": "openvino", "device": "cuda"}, "device of backend openvino"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(WorldForgeError, match=named):
        LeWMOptions(**options)


def test_openvino_missing_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(WorldForgeError, match="for backend openvino") as info:
        load_lewm(hub, embodiment_of(), LeWMOptions(backend="openvino"))
    assert info.value.code is ErrorCode.DEPENDENCY_MISSING
