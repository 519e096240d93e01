"""``worldforge score``: candidates of one's own, scored once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worldforge_ros.cli import main
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.observation import Observation
from worldforge_ros.simulation.pusht import PushTSimulation

PUSHT = load_embodiment("pusht")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of an episode's beginning and four candidates, in the working folder."""
    world = PushTSimulation()
    world.reset(seed=3)
    Image.fromarray(world.image()).save(tmp_path / "seen.png")
    Image.fromarray(world.goal_image()).save(tmp_path / "goal.png")
    ends = np.array([[0.1, 0.2], [0.3, 0.4], [0.4, 0.1], [0.2, 0.2]])
    way = np.linspace(0.1, 1.0, 15)[None, :, None]
    np.save(tmp_path / "c.npy", world.position + (ends[:, None] - world.position) * way)
    (tmp_path / "position").write_text(" ".join(str(q) for q in world.position))
    world.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(scene: Path, **changes: list[str] | None) -> list[str]:
    """The command line, with options replaced, or left out where None."""
    given: dict[str, list[str] | None] = {
        "image": ["seen.png"],
        "position": (scene / "position").read_text().split(),
        "goal": ["goal.png"],
        "candidates": ["c.npy"],
        **changes,
    }
    line = ["score"]
    for name, values in given.items():
        if values is not None:
            line += [f"--{name.replace('_', '-')}", *values]
    return line


def test_costs_are_the_world_models_own(scene: Path, capsys: Any) -> None:
    assert main(options(scene, json=["s.json"], picture=["out/p.png"])) == 0
    found = json.loads((scene / "s.json").read_text())

    from worldforge_ros.parameters import GivenParameters
    from worldforge_ros.resources import share_dir
    from worldforge_ros.scorers.loading import load_scorer
    from worldforge_ros.scorers.parameters import declare

    model = str(share_dir() / "models/pusht/world_model")
    config = declare(GivenParameters("score_node", {"model_path": model}), 1, {})
    position = np.array([float(q) for q in (scene / "position").read_text().split()])
    seen = Observation(
        0, {"top": np.asarray(Image.open(scene / "seen.png"))}, position, np.zeros(2)
    )
    goal = np.asarray(Image.open(scene / "goal.png"))
    expected = load_scorer(config, PUSHT).score([seen], goal, np.load(scene / "c.npy"))
    np.testing.assert_allclose(found["costs"], expected.costs, rtol=1e-5)
    order = np.argsort(expected.costs).tolist()
    assert found["order"] == order
    assert found["best_index"] == order[0]
    costs = np.sort(expected.costs)
    assert found["margin"] == pytest.approx(costs[1] - costs[0], rel=1e-3)
    assert found["lower_is_better"] is True
    printed = capsys.readouterr().out
    first = next(line for line in printed.splitlines() if line.startswith("│    1 "))
    assert first.split("│")[2].strip() == str(order[0])
    with Image.open(scene / "out/p.png") as picture:
        assert picture.size == (730, 480)


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"image": None, "position": None}, "INVALID_ARGUMENT", "--image is missing"),
        ({"goal": None}, "INVALID_ARGUMENT", "--goal is missing"),
        ({"position": None}, "INVALID_ARGUMENT", "--position is given 0 times for 1 picture"),
        ({"position": ["0.1"]}, "INVALID_ARGUMENT", "2 finite numbers (pusher_x, pusher_y)"),
        ({"position": ["nan", "0"]}, "INVALID_ARGUMENT", "--position is [nan, 0.0]"),
        ({"velocity": ["0.1"]}, "INVALID_ARGUMENT", "--velocity is [0.1]"),
        ({"image": ["c.npy"]}, "INVALID_ARGUMENT", "--image is c.npy (cannot identify"),
        ({"goal": ["absent.png"]}, "INVALID_ARGUMENT", "--goal is absent.png ([Errno 2]"),
        ({"candidates": ["seen.png"]}, "INVALID_ARGUMENT", "--candidates is seen.png"),
        ({"image": ["small.png"]}, "IMAGE_SIZE_MISMATCH", "48"),
        ({"candidates": ["wide.npy"]}, "ACTION_DIM_MISMATCH", "3"),
        ({"candidates": ["flat.npy"]}, "TENSOR_SHAPE_MISMATCH", "candidates.shape is [15, 2]"),
        ({"candidates": ["odd.npy"]}, "HORIZON_NOT_WHOLE_BLOCKS", "7 actions"),
        ({"candidates": ["words.npy"]}, "INVALID_ARGUMENT", "<U4; expected an array of numbers"),
        ({"objective": ["best"]}, "OBJECTIVE_UNKNOWN", "best"),
        ({"world_model": ["absent"]}, "CHECKPOINT_MISSING", "absent"),
    ],
)
def test_a_mistake_is_named(
    scene: Path, capsys: Any, changes: dict[str, Any], code: str, named: str
) -> None:
    Image.new("RGB", (48, 48)).save("small.png")
    np.save("wide.npy", np.zeros((2, 15, 3)))
    np.save("flat.npy", np.zeros((15, 2)))
    np.save("odd.npy", np.zeros((2, 7, 2)))
    np.save("words.npy", np.array([[["left"]]]))
    assert main(options(scene, **changes)) == (2 if code == "INVALID_ARGUMENT" else 1)
    said = capsys.readouterr().err
    assert said.startswith(f"worldforge: {code}: ")
    assert named in said
    assert not (scene / "score.png").exists()


def test_the_running_node_is_asked(ros: Any, scene: Path) -> None:
    from worldforge_ros.msg import Observation as ObservationMsg
    from worldforge_ros.ros import convert, qos
    from worldforge_ros.srv import ScoreCandidates

    requests: list[Any] = []

    def answer(request: Any, response: Any) -> Any:
        requests.append(request)
        if len(requests) == 2:
            response.error_code = "GOAL_MISSING"
            response.message = "goal is none; expected a picture"
            return response
        response.success = True
        response.scores = [2.0, float("nan"), 1.0, 4.0]
        response.metadata = convert.key_values({"model_id": "w-1", "objective": "l2"})
        return response

    ros.node.create_service(ScoreCandidates, "/arm/score_candidates", answer)
    observations = ros.node.create_publisher(ObservationMsg, "/arm/observation", qos.CHUNK)
    image = np.asarray(Image.open(scene / "seen.png"))
    seen = Observation(5, {"top": image}, np.array([0.2, 0.3]), np.zeros(2))
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": str(ros.domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }

    def call(*more: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "worldforge_ros.cli", "score", "--live", "--namespace"]
        command += ["/arm", "--timeout", "30", "--candidates", "c.npy", *more]
        with subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:

            def ended() -> bool:
                observations.publish(convert.observation_to_msg(seen, PUSHT, "base"))
                return process.poll() is not None

            ros.wait_until(ended, 60.0, "the command")
            assert process.stdout is not None
            return process.returncode, process.stdout.read()

    status, printed = call("--json", "live.json")
    assert status == 0, printed
    found = json.loads((scene / "live.json").read_text())
    assert found["costs"] == [2.0, None, 1.0, 4.0]
    assert (found["order"], found["best_index"], found["margin"]) == ([2, 0, 3], 2, 1.0)
    assert "without a cost: 1" in printed
    assert not requests[0].history, "the node's own observations are asked for"
    assert not requests[0].goal.data
    np.testing.assert_allclose(
        convert.tensor_from_msg(requests[0].candidates, "candidates")[0],
        np.load(scene / "c.npy"),
        atol=1e-6,
    )
    assert (scene / "score.png").exists()
    status, printed = call("--goal", "goal.png")
    assert (status, printed.strip()) == (
        1,
        "worldforge: GOAL_MISSING: goal is none; expected a picture",
    )
    assert requests[1].goal.height == 96


def test_nobody_answers(scene: Path, ros: Any, capsys: Any) -> None:
    assert main(["score", "--live", "--candidates", "c.npy", "--timeout", "0.5"]) == 1
    assert "SCORE_UNAVAILABLE: service /score_candidates is absent" in capsys.readouterr().err
