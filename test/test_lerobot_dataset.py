"""Bags to LeRobot data sets and back, to the bit; and a policy that trains on one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from bag_support import (
    LEAD,
    NS,
    START,
    header,
    image_message,
    joint_commands,
    new,
    picture,
    position,
    pusht_messages,
    write_bag,
    write_messages,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from worldforge_ros import cli
from worldforge_ros.bags.actions import RecordedActions
from worldforge_ros.bags.dataset import (
    OWN_FILE,
    SETPOINT,
    STAMP,
    LeRobotFolder,
    dataset_frames,
    policy_values,
)
from worldforge_ros.bags.dataset_bags import export_dataset
from worldforge_ros.bags.dataset_writer import export_bags
from worldforge_ros.bags.frames import BagFrames, Frame
from worldforge_ros.bags.reader import Bag
from worldforge_ros.bags.topics import find_topics
from worldforge_ros.bags.writer import read_notes
from worldforge_ros.bridges.policy import actions_to_setpoints
from worldforge_ros.embodiment import Embodiment, load_embodiment, parse_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation

pytest.importorskip("lerobot", reason="lerobot is not installed")

# LeRobot 0.4 hands its columns of one value to datasets in a way that NumPy will not take for ever.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim")

GAP = range(8, 12)
"""Camera frames that the second bag lacks."""


@pytest.fixture(scope="module")
def robot() -> Embodiment:
    return load_embodiment("pusht")


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bags")
    begin = START + 100 * NS
    lost = {begin + index * NS // 10 + 2_000_000 for index in GAP}
    with_gap = [
        item
        for item in pusht_messages(2.0, start=begin)
        if not (item[0] == "/camera/top/image_raw" and item[1] in lost)
    ]
    return [
        write_bag(folder / "first", seconds=1.5),
        write_messages(folder / "second", with_gap),
    ]


@pytest.fixture(scope="module")
def data_set(bags: list[Path], robot: Embodiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "recorded"
    report = export_bags(bags, folder, robot)
    assert (report["frames"], report["episodes"], report["fps"]) == (31, 3, 10)
    assert [row["episodes"] for row in report["bags"]] == [[0], [1, 2]]
    return folder


def bag_frames(path: Path, robot: Embodiment, observations: str = "auto") -> list[Frame]:
    with Bag.open(path) as bag:
        topics = find_topics(bag, robot, observations=observations)
        return list(BagFrames(bag, topics, robot, RecordedActions(topics, robot)))


def assert_same(left: list[Frame], right: list[Frame], pictures: bool = True) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.starts == other.starts
        assert one.observation.stamp == other.observation.stamp
        assert one.observation.task == other.observation.task
        for a, b in (
            (one.setpoint, other.setpoint),
            (one.observation.position, other.observation.position),
            (one.observation.velocity, other.observation.velocity),
        ):
            assert a.dtype == b.dtype == np.float64
            assert np.array_equal(a, b)
        assert one.observation.images.keys() == other.observation.images.keys()
        if pictures:
            for name, image in one.observation.images.items():
                assert np.array_equal(image, other.observation.images[name])


def copied(data_set: Path, target: Path) -> Path:
    return Path(shutil.copytree(data_set, target))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_column(data_set: Path, name: str, change: Callable[[list[Any]], object]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (path,) = data_set.glob("data/*/*.parquet")
    table = pq.read_table(path, partitioning=None)
    values = table.column(name).to_pylist()
    change(values)
    field = table.schema.field(name)
    place = table.schema.get_field_index(name)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)


def without_own(data_set: Path) -> Path:
    """The data set as others make them: policy features, action and pictures."""
    import pyarrow.parquet as pq

    own = ["worldforge.stamp", "worldforge.position", "worldforge.velocity", "worldforge.setpoint"]
    (path,) = data_set.glob("data/*/*.parquet")
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(own), path)
    (data_set / OWN_FILE).unlink()

    def drop(info: dict[str, Any]) -> None:
        for name in own:
            del info["features"][name]

    edit_json(data_set / "meta" / "info.json", drop)
    return data_set


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(WorldForgeError) as caught:
        action()
    assert caught.value.code is ErrorCode.DATASET_INVALID
    return caught.value.message


def test_a_data_set_holds_what_was_recorded(data_set: Path) -> None:
    """Against the functions that the bags were drawn with, not against our own reading of them."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/recorded", root=data_set)
    times = [index / 10 for index in range(15)]
    times += [index / 10 for index in range(20) if index not in GAP]
    assert len(dataset) == len(times)
    assert dataset.num_episodes == 3
    assert dataset.fps == 10
    assert [dataset[i]["frame_index"].item() for i in (0, 14, 15, 22, 23, 30)] == [
        0, 14, 0, 7, 0, 7,
    ]  # fmt: skip
    for index, t in enumerate(times):
        item = dataset[index]
        begin = START if index < 15 else START + 100 * NS
        assert item[STAMP].item() == begin + round(t * 10) * NS // 10
        assert item["observation.state"].numpy() == pytest.approx(
            (position(t) * 1000).astype(np.float32), abs=0
        )
        # The command received 0.05 s after the picture, 2 ms after it was made.
        told = position(round(t * 100 + 4) / 100 + LEAD)
        assert item["action"].numpy() == pytest.approx((told * 1000).astype(np.float32), abs=0)
        pixels = np.rint(item["observation.image"].numpy().transpose(1, 2, 0) * 255)
        assert np.array_equal(pixels.astype(np.uint8), picture(t))
        assert item["task"] == "push the T block onto the goal outline"
    states = np.stack([(position(t) * 1000).astype(np.float32) for t in times])
    assert dataset.meta.stats["observation.state"]["mean"] == pytest.approx(states.mean(axis=0))
    assert dataset.meta.stats["observation.state"]["max"] == pytest.approx(states.max(axis=0))
    assert dataset.meta.stats["observation.image"]["mean"].shape == (3, 1, 1)
    assert not (data_set / "images").exists()


def test_the_way_back_is_exact(
    bags: list[Path], data_set: Path, robot: Embodiment, tmp_path: Path
) -> None:
    frames = [frame for path in bags for frame in bag_frames(path, robot)]
    assert_same(frames, list(dataset_frames(data_set, robot)))

    report = export_dataset(data_set, tmp_path / "back", robot)
    assert [row["bag"] for row in report["bags"]] == ["first", "second_001", "second_002"]
    assert all(row["read_again"] == row["frames"] for row in report["bags"])
    assert {row["stretches"] for row in report["bags"]} == {1}
    again = [tmp_path / "back" / row["bag"] for row in report["bags"]]
    for kind in ("observation", "sensors"):
        assert_same(frames, [f for path in again for f in bag_frames(path, robot, kind)])

    export_bags(again, tmp_path / "second set", robot)
    assert_same(frames, list(dataset_frames(tmp_path / "second set", robot)))
    own = [json.loads((p / OWN_FILE).read_text()) for p in (data_set, tmp_path / "second set")]
    kept = ("frames", "first_stamp_ns", "last_stamp_ns", "goals", "actions")
    first, second = ([{k: e[k] for k in kept} for e in doc["episodes"]] for doc in own)
    assert first == second


def test_a_bag_from_a_data_set_says_where_it_is_from(
    bags: list[Path], data_set: Path, robot: Embodiment, tmp_path: Path
) -> None:
    export_dataset(data_set, tmp_path / "back", robot, namespace="left")
    with Bag.open(bags[1]) as bag:
        digest = bag.sha256()
    notes = read_notes(tmp_path / "back" / "second_002")
    assert notes == {
        "embodiment": "pusht",
        "dataset": "recorded",
        "episode": "2",
        "bag": "second",
        "sha256": digest,
        "actions": "joint_commands",
    }
    with Bag.open(tmp_path / "back" / "second_002") as bag:
        assert {(topic.name, topic.count) for topic in bag.topics} == {
            ("/left/camera/top/image_raw", 8),
            ("/left/joint_states", 8),
            ("/left/observation", 8),
            ("/left/joint_commands", 16),
            ("/left/goal_image", 1),
        }
        assert bag.problems == []
        (goal,) = list(bag.events(["/left/goal_image"]))
    assert np.array_equal(goal.message.data.reshape(96, 96, 3), picture(0.0))
    # The goal was set when the recording began, long before the episode's first frame.
    assert goal.message.header.stamp.sec == START // NS + 100


def test_a_policy_trains_on_it_and_proposes(
    data_set: Path, robot: Embodiment, tmp_path: Path
) -> None:
    import torch
    from lerobot.configs.types import FeatureType
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    from worldforge_ros.policies.lerobot import load_lerobot_policy

    torch.manual_seed(0)
    config = ACTConfig(
        chunk_size=4,
        n_action_steps=4,
        pretrained_backbone_weights=None,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=4,
        device="cpu",
        push_to_hub=False,
    )
    dataset = LeRobotDataset(
        "local/recorded", root=data_set, delta_timestamps={"action": [i / 10 for i in range(4)]}
    )
    policy = make_policy(config, ds_meta=dataset.meta)
    assert config.input_features.keys() == {"observation.state", "observation.image"}
    assert {f.type for f in config.output_features.values()} == {FeatureType.ACTION}
    before, after = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    optimiser = torch.optim.Adam(policy.parameters(), lr=1e-3)
    policy.train()
    batches = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=False)
    losses = []
    for batch, _ in zip(batches, range(2), strict=False):
        loss, _ = policy(before(batch))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert len(losses) == 2
    assert np.isfinite(losses).all()

    for part in (policy, before, after):
        part.save_pretrained(tmp_path / "policy")
    loaded = load_lerobot_policy(tmp_path / "policy", robot)
    frame = next(iter(dataset_frames(data_set, robot)))
    proposal = loaded.propose([frame.observation], 2, seed=0)
    assert proposal.candidates.shape == (2, 4, 2)
    # Untrained, but in metres: around the mean of what was recorded, not around a thousand.
    assert np.abs(proposal.candidates - frame.setpoint).max() < 1.0


def test_video_is_smaller_than_exact(bags: list[Path], robot: Embodiment, tmp_path: Path) -> None:
    """H.264 with half the colour resolution: what docs/datasets.md states."""
    export_bags(bags, tmp_path / "film", robot, video=True)
    frames = [frame for path in bags for frame in bag_frames(path, robot)]
    filmed = list(dataset_frames(tmp_path / "film", robot))
    assert_same(frames, filmed, pictures=False)

    def error(shift: int) -> float:
        pairs = zip(frames[max(shift, 0) :], filmed[max(-shift, 0) :], strict=False)
        return float(
            np.mean(
                [
                    np.square(
                        one.observation.images["top"].astype(float)
                        - other.observation.images["top"]
                    ).mean()
                    for one, other in pairs
                ]
            )
        )

    assert 10 * np.log10(255**2 / error(0)) > 32.0
    # Not a frame early or late, in any of the three episodes that share the file.
    assert error(0) < min(error(1), error(-1))


def test_data_sets_of_others_are_read(data_set: Path, robot: Embodiment, tmp_path: Path) -> None:
    """Without our columns: stamps from 1 s on, joints from the features, speeds as differences."""
    foreign = without_own(copied(data_set, tmp_path / "foreign"))
    frames = list(dataset_frames(foreign, robot))
    exact = list(dataset_frames(data_set, robot))
    assert [frame.starts for frame in frames] == [frame.starts for frame in exact]
    assert [f.observation.stamp for f in frames[:3]] == [NS, NS + NS // 10, NS + NS // 5]
    for frame, other in zip(frames, exact, strict=True):
        # Half a unit in the last place of float32 below 512 units, which are millimetres.
        assert frame.observation.position == pytest.approx(other.observation.position, abs=1.6e-8)
        assert frame.setpoint == pytest.approx(other.setpoint, abs=1.6e-8)
        assert frame.observation.velocity == pytest.approx(other.observation.velocity, abs=2e-3)
        assert np.array_equal(frame.observation.images["top"], other.observation.images["top"])
    report = export_dataset(foreign, tmp_path / "back", robot)
    assert report["derived_velocities"]
    assert [row["bag"] for row in report["bags"]] == [f"episode_{i:06d}" for i in range(3)]
    paths = [tmp_path / "back" / row["bag"] for row in report["bags"]]
    export_bags(paths, tmp_path / "again", robot)
    again = list(dataset_frames(tmp_path / "again", robot))
    assert_same(frames, again)
    for one, other in zip(exact, again, strict=True):
        before, after = policy_values([one], robot), policy_values([other], robot)
        assert all(np.array_equal(before[name], after[name]) for name in before)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(
        st.floats(-1e4, 1e4, width=32).filter(lambda v: abs(v) > 1e-4),
        min_size=2,
        max_size=2,
    ),
    scale=st.floats(1e-3, 1e3),
    offset=st.floats(-100, 100),
)
def test_policy_units_come_back_to_the_bit(
    values: list[float], scale: float, offset: float
) -> None:
    """Those that others have made, away from zero; ours keep SI values beside them."""
    robot = load_embodiment("pusht")
    action = replace(robot.policy.action, scale=(scale, -scale), offset=(offset, -offset))
    robot = replace(robot, policy=replace(robot.policy, action=action))
    setpoint = actions_to_setpoints(values, np.zeros(2), robot)
    frame = Frame(True, Observation(1, {}, np.zeros(2), np.zeros(2)), setpoint)
    found = policy_values([frame], robot)["action"][0]
    assert found.dtype == np.float32
    assert found.tolist() == values


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e36])
def test_what_float32_cannot_hold_is_refused(robot: Embodiment, value: float) -> None:
    still = Observation(1, {}, np.zeros(2), np.zeros(2))
    moved = replace(still, position=np.array([0.0, value]))
    for frame, field in (
        (Frame(True, still, np.array([value, 0.0])), "action"),
        (Frame(True, moved, np.zeros(2)), "observation."),
    ):
        with pytest.raises(WorldForgeError) as caught:
            policy_values([frame], robot)
        assert caught.value.code is ErrorCode.TENSOR_NOT_FINITE
        assert caught.value.message.startswith(field)


def two_cameras() -> Embodiment:
    """One joint, two cameras of which a policy sees one, 50 Hz, and another unit."""
    return parse_embodiment(
        {
            "name": "slider",
            "task": "slide",
            "joints": [{"name": "rail", "type": "prismatic"}],
            "cameras": {
                name: {"topic": f"{name}/image", "width": 64, "height": 48}
                for name in ("near", "far")
            },
            "observation": {"joint_state_topic": "joints", "max_age": 0.5, "tolerance": 0.05},
            "tracking": {"law": "perfect"},
            "policy": {
                "step": 0.02,
                "features": {
                    "observation.state": {
                        "joints": ["rail"],
                        "quantity": "velocity",
                        "scale": 3.0,
                        "offset": 0.1,
                    },
                    "observation.images.eye": {"camera": "near"},
                },
                "action": {"meaning": "absolute", "scale": 7.0, "offset": -0.3},
            },
        }
    )


@pytest.mark.parametrize("video", [False, True], ids=["images", "video"])
def test_uneven_stamps_one_joint_and_a_camera_that_no_policy_sees(
    tmp_path: Path, video: bool
) -> None:
    """Frames that come up to half a step early or late, and a second episode of one frame."""
    robot = two_cameras()
    rng = np.random.default_rng(5)
    step = NS // 50
    stamps = [
        START + index * step + int(rng.integers(-step // 2 + 1, step // 2)) * (index > 0)
        for index in range(20)
    ]
    stamps.append(START + NS)
    messages = []
    for index, time in enumerate(stamps):
        drawn = rng.integers(0, 256, (2, 48, 64, 3), np.uint8)
        state = new(
            "sensor_msgs/msg/JointState",
            header=header(time),
            name=["rail"],
            position=rng.normal(size=1),
            velocity=rng.normal(size=1),
            effort=np.zeros(0),
        )
        seen = new(
            "worldforge_ros/msg/Observation",
            header=header(time),
            embodiment="slider",
            camera_names=["near", "far"],
            images=[image_message(pixels, time) for pixels in drawn],
            state=state,
            task="slide" if index % 2 else "slide gently",
        )
        messages.append(("/observation", time, seen))
    messages += [
        ("/joint_commands", START + index * NS // 500, joint_commands(rng.normal(size=1)))
        for index in range(520)
    ]
    bag = write_messages(tmp_path / "uneven", sorted(messages, key=lambda item: item[1]))
    frames = bag_frames(bag, robot)
    assert sum(frame.starts for frame in frames) > 1
    assert frames[-1].starts

    export_bags([bag], tmp_path / "set", robot, video=video)
    stored = list(dataset_frames(tmp_path / "set", robot))
    # A task that is the embodiment's is one that was not said.
    assert [f.observation.task for f in stored] == [
        f.observation.task.removesuffix("slide") for f in frames
    ]
    plain = [replace(f, observation=replace(f.observation, task="")) for f in frames]
    shown = [replace(f, observation=replace(f.observation, task="")) for f in stored]
    assert_same(plain, shown, pictures=not video)
    folder = LeRobotFolder(tmp_path / "set", robot)
    assert dict(folder.layout.pictures) == {
        "observation.images.eye": "near",
        "observation.images.far": "far",
    }

    report = export_dataset(tmp_path / "set", tmp_path / "back", robot)
    again = [tmp_path / "back" / row["bag"] for row in report["bags"]]
    assert_same(stored, [f for path in again for f in bag_frames(path, robot)])


def test_an_instruction_can_be_given(bags: list[Path], robot: Embodiment, tmp_path: Path) -> None:
    export_bags(bags[:1], tmp_path / "told", robot, task="push it away")
    frames = list(dataset_frames(tmp_path / "told", robot))
    assert {frame.observation.task for frame in frames} == {"push it away"}
    export_dataset(tmp_path / "told", tmp_path / "back", robot)
    assert_same(frames, bag_frames(tmp_path / "back" / "first", robot))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda info: info.update(fps=30), "fps"),
        (lambda info: info.update(codebase_version="v2.1"), "codebase_version"),
        (lambda info: info["features"].pop("observation.image"), "features.observation.image"),
        (
            lambda info: info["features"]["observation.image"].update(shape=[100, 96, 3]),
            "features.observation.image.shape",
        ),
        (lambda info: info["features"]["action"].update(shape=[3]), "features.action"),
        (
            lambda info: info["features"][SETPOINT].update(names=["pusher_y", "pusher_x"]),
            f"joints in features.{SETPOINT}.names",
        ),
        (lambda info: info["features"].pop(STAMP), f"features.{STAMP}"),
        (lambda info: info.update(total_episodes=4), "meta/episodes"),
    ],
)
def test_what_does_not_fit_the_robot_is_named(
    data_set: Path,
    robot: Embodiment,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    expected: str,
) -> None:
    other = copied(data_set, tmp_path / "other")
    edit_json(other / "meta" / "info.json", change)
    assert refused(lambda: list(dataset_frames(other, robot))).startswith(expected)


def _set(index: int, value: Any) -> Callable[[list[Any]], None]:
    def change(values: list[Any]) -> None:
        values[index] = value

    return change


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        ("action", _set(3, [1.0, 2.0]), "action in episode 0"),
        ("observation.state", _set(20, [np.nan, 2.0]), "observation.state in episode 1"),
        (STAMP, _set(4, START), f"{STAMP} in episode 0"),
        ("timestamp", _set(2, 0.25), "timestamp in episode 0"),
        ("frame_index", _set(2, 5), "frame_index in episode 0"),
        ("observation.image", _set(2, {"bytes": b"png?", "path": None}), "observation.image in"),
        ("task_index", _set(2, 7), "task_index of"),
    ],
)
def test_rows_that_are_wrong_are_named(
    data_set: Path,
    robot: Embodiment,
    tmp_path: Path,
    column: str,
    change: Callable[[list[Any]], None],
    expected: str,
) -> None:
    other = copied(data_set, tmp_path / "other")
    edit_column(other, column, change)
    assert refused(lambda: list(dataset_frames(other, robot))).startswith(expected)


def test_another_robot_and_no_data_set(data_set: Path, robot: Embodiment, tmp_path: Path) -> None:
    scaled = replace(robot.policy.action, scale=(500.0, 500.0))
    changed = replace(robot, policy=replace(robot.policy, action=scaled))
    assert "embodiment file" in refused(lambda: list(dataset_frames(data_set, changed)))
    assert "embodiment" in refused(lambda: LeRobotFolder(data_set, replace(robot, name="another")))
    assert "info.json" in refused(lambda: LeRobotFolder(tmp_path, robot))
    relative = replace(robot.policy.action, meaning="relative")
    changed = replace(robot, policy=replace(robot.policy, action=relative))
    assert "policy.action.meaning" in refused(lambda: LeRobotFolder(data_set, changed))
    odd = replace(robot, policy=replace(robot.policy, step=0.03))
    assert "policy.step" in refused(lambda: export_bags([], tmp_path / "new", odd))
    half = {
        "observation.state": replace(
            robot.policy.features["observation.state"],
            joints=("pusher_x",),
            scale=(1.0,),
            offset=(0.0,),
        )
    }  # type: ignore[call-arg]
    half["observation.image"] = robot.policy.features["observation.image"]  # type: ignore[assignment]
    partial = replace(robot, policy=replace(robot.policy, features=MappingProxyType(half)))
    foreign = without_own(copied(data_set, tmp_path / "foreign"))
    edit_json(
        foreign / "meta" / "info.json",
        lambda info: info["features"]["observation.state"].update(shape=[1]),
    )
    assert "pusher_y" in refused(lambda: LeRobotFolder(foreign, partial))


def test_nothing_is_left_of_a_failure(
    bags: list[Path],
    data_set: Path,
    robot: Embodiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    save, calls = LeRobotDataset.save_episode, []

    def fail_second(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("no space left on device")
        save(self, *args, **kwargs)

    monkeypatch.setattr(LeRobotDataset, "save_episode", fail_second)
    message = refused(lambda: export_bags(bags, tmp_path / "sets" / "new", robot))
    assert "episode 1, of bag second" in message
    assert "no space left on device" in message
    assert list((tmp_path / "sets").iterdir()) == []

    other = copied(data_set, tmp_path / "other")
    edit_column(other, "observation.state", _set(20, [np.nan, 2.0]))
    refused(lambda: export_dataset(other, tmp_path / "back", robot))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "sets"]


def test_a_bag_without_a_frame(robot: Embodiment, tmp_path: Path) -> None:
    far = pusht_messages(0.5, start=START + 50 * NS, camera_hz=0.0, goal=False)
    path = write_messages(tmp_path / "apart", [*pusht_messages(0.5, joint_hz=0.0), *far])
    message = refused(lambda: export_bags([path], tmp_path / "set", robot))
    assert "none in apart (5 pictures, 0 observations" in message
    assert not (tmp_path / "set").exists()


def test_the_command_both_ways(
    bags: list[Path], robot: Embodiment, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    there, back = tmp_path / "set", tmp_path / "back"
    document = tmp_path / "reports" / "set.json"
    arguments = ["export", *map(str, bags), "--to-lerobot", str(there), "--json", str(document)]
    assert cli.main(arguments) == 0
    printed = capfd.readouterr().out
    assert "31 frames of pusht at 10 Hz in 3 episodes, pictures as png" in printed
    report = json.loads(document.read_text())
    assert (report["frames"], report["bags"][1]["gaps"]) == (31, 1)
    assert cli.main(arguments) == 2
    assert "nothing is overwritten" in capfd.readouterr().err
    assert cli.main(["export", str(there), "--to-bag", str(back)]) == 0
    assert "3 bags of" in capfd.readouterr().out
    assert_same(
        [frame for path in bags for frame in bag_frames(path, robot)],
        [frame for path in sorted(back.iterdir()) for frame in bag_frames(path, robot)],
    )
    assert cli.main(["export", str(there), "--to-bag", str(back / "x"), "--video"]) == 2
    assert "only with --to-lerobot" in capfd.readouterr().err
    assert cli.main(["export", *map(str, bags), "--to-lerobot", "x", "--remap", "joints"]) == 2
    assert "OURS:=BAG'S" in capfd.readouterr().err
