"""Frames of bags: one observation and one set-point for every step, in whole episodes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_support import (
    LEAD,
    NS,
    START,
    image_message,
    joint_state,
    picture,
    position,
    pusht_messages,
    velocity,
    write_bag,
    write_messages,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from worldforge_ros.bags.actions import RecordedActions
from worldforge_ros.bags.frames import BACK, BagFrames, Frame, FrameCounts, on_grid
from worldforge_ros.bags.reader import Bag
from worldforge_ros.bags.topics import find_topics
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.observation import Observation

PUSHT = load_embodiment("pusht")
STEP, TOLERANCE = PUSHT.policy.step, PUSHT.observation.tolerance


def read(path: Path, source: str = "auto", **how: Any) -> tuple[list[Frame], BagFrames]:
    with Bag.open(path) as bag:
        topics = find_topics(bag, PUSHT, **how)
        frames = BagFrames(bag, topics, PUSHT, RecordedActions(topics, PUSHT, source))
        return list(frames), frames


def starts(frames: list[Frame]) -> list[float]:
    """Seconds at which episodes begin."""
    return [round((f.observation.stamp - START) / NS, 3) for f in frames if f.starts]


def gridded(stamps: list[float]) -> tuple[list[tuple[bool, float]], FrameCounts]:
    """What is taken of observations at these seconds."""
    counts = FrameCounts()
    observations = (
        Observation(START + round(s * NS), {}, np.zeros(2), np.zeros(2)) for s in stamps
    )
    found = [
        (begins, round((item.stamp - START) / NS, 6))
        for begins, item in on_grid(observations, STEP, TOLERANCE, counts)
    ]
    return found, counts


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("observations", ["sensors", "observation"])
def test_every_picture_of_a_camera_at_the_rate_of_the_policy_is_a_frame(
    tmp_path: Path, storage: str, observations: str
) -> None:
    path = write_bag(tmp_path / "bag", storage=storage, seconds=3.0, observations=True)
    frames, reader = read(path, observations=observations)
    assert len(frames) == 30
    assert starts(frames) == [0.0]
    for index, frame in enumerate(frames):
        time = index * STEP
        observation = frame.observation
        assert observation.stamp == START + round(time * NS)
        assert np.array_equal(observation.images["top"], picture(time))
        np.testing.assert_allclose(observation.position, position(time), rtol=1e-12)
        np.testing.assert_allclose(observation.velocity, velocity(time), rtol=1e-12)
        # What was received last, 2 ms late at 100 Hz, in the middle of the step.
        np.testing.assert_allclose(frame.setpoint, position(time + 0.04 + LEAD), rtol=1e-12)
    counts = reader.counts
    assert (counts.pictures, counts.observations, counts.frames) == (30, 30, 30)
    assert (counts.decimated, counts.off_grid, counts.no_action, counts.gaps) == (0, 0, 0, [])
    assert len(reader.goals) == 1


def test_a_faster_camera_is_thinned_out(tmp_path: Path) -> None:
    frames, reader = read(write_bag(tmp_path / "bag", seconds=3.0, camera_hz=30))
    assert len(frames) == 30
    assert starts(frames) == [0.0]
    stamps = [(frame.observation.stamp - START) / NS for frame in frames]
    assert stamps == pytest.approx([0.1 * k for k in range(30)], abs=1e-6)
    # The last picture is the best one for a step that nothing was commanded in.
    assert (reader.counts.decimated, reader.counts.no_action) == (59, 1)


def test_a_slower_camera_gives_episodes_of_one_frame(tmp_path: Path) -> None:
    frames, reader = read(write_bag(tmp_path / "bag", seconds=3.0, camera_hz=4))
    assert [frame.starts for frame in frames] == [True] * len(frames)
    assert len(frames) == 12
    assert len(reader.counts.gaps) == 11


def test_an_episode_ends_where_a_step_has_no_picture(tmp_path: Path) -> None:
    messages = [
        item
        for item in pusht_messages(4.0)
        if item[0] != "/camera/top/image_raw" or not 1.05 < (item[1] - START) / NS < 1.35
    ]
    frames, reader = read(write_messages(tmp_path / "bag", messages))
    assert len(frames) == 40 - 3
    assert starts(frames) == [0.0, 1.4]
    assert reader.counts.gaps == [(START + NS, START + round(1.4 * NS))]


def test_an_episode_ends_where_nothing_was_commanded(tmp_path: Path) -> None:
    messages = [
        item
        for item in pusht_messages(8.0)
        if item[0] != "/joint_commands" or not 2.0 < (item[1] - START) / NS < 5.0
    ]
    frames, reader = read(write_messages(tmp_path / "bag", messages))
    assert starts(frames) == [0.0, 5.0]
    assert reader.counts.no_action == 80 - len(frames)
    # Commands count for a second.
    assert 19 <= reader.counts.no_action <= 21


def test_frames_do_not_wait_for_ever_for_actions(tmp_path: Path) -> None:
    messages = [
        item
        for item in pusht_messages(20.0, joint_hz=20)
        if item[0] != "/joint_commands" or (item[1] - START) / NS < 1.0
    ]
    frames, reader = read(write_messages(tmp_path / "bag", messages))
    assert len(frames) + reader.counts.no_action == 200
    assert starts(frames) == [0.0]


def test_a_bag_that_was_set_back_is_two_episodes(tmp_path: Path) -> None:
    """Stamps of a simulator that was reset, while the recorder's clock goes on."""
    messages = [*pusht_messages(3.0)]
    messages += [
        (topic, time + 3 * NS, message) for topic, time, message in pusht_messages(2.0, goal=False)
    ]
    frames, _ = read(write_messages(tmp_path / "bag", messages), "joint_states")
    assert starts(frames) == [0.0, 0.0]
    assert len(frames) >= 29 + 19 - 2


def test_simulated_stamps_and_wall_receive_times(tmp_path: Path) -> None:
    messages = [(topic, time + 500 * NS, m) for topic, time, m in pusht_messages(3.0)]
    path = write_messages(tmp_path / "bag", messages)
    frames, _ = read(path, "joint_states")
    assert starts(frames) == [0.0]
    assert len(frames) >= 28
    assert np.array_equal(frames[5].setpoint, position(0.65))
    with pytest.raises(WorldForgeError) as caught:
        read(path)
    assert caught.value.code is ErrorCode.STAMP_INVALID
    assert "--actions joint_states" in str(caught.value)


def test_pictures_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    wrong = np.zeros((48, 48, 3), np.uint8)
    extra = [
        ("/camera/top/image_raw", START + NS // 2 + 5, image_message(wrong, START + NS // 2 + 5))
    ]
    frames, reader = read(write_bag(tmp_path / "bag", seconds=1.0, extra=extra))
    assert len(frames) == 10
    assert reader.counts.refused == {"IMAGE_SIZE_MISMATCH": 1}
    assert "48" in reader.counts.first_refusal


@pytest.mark.parametrize("kind", ["bgr8", "padded", "jpeg", "png"])
def test_pictures_of_other_encodings_are_the_same(tmp_path: Path, kind: str) -> None:
    how: dict[str, Any] = {
        "bgr8": {"encoding": "bgr8"},
        "padded": {"padding": 8},
        "jpeg": {"compressed": "jpeg"},
        "png": {"compressed": "png"},
    }[kind]
    frames, reader = read(write_bag(tmp_path / "bag", seconds=0.5, **how))
    assert reader.counts.refused == {}
    assert len(frames) == 5
    for index, frame in enumerate(frames):
        found = frame.observation.images["top"].astype(int)
        worst = np.abs(found - picture(index * STEP)).mean()
        assert worst < (2.0 if kind == "jpeg" else 1e-9)


def test_goals_are_those_that_differ(tmp_path: Path) -> None:
    extra = [
        ("/goal_image", START + k * NS, image_message(picture(float(k > 1)), START + k * NS))
        for k in (1, 2, 3)
    ]
    _, reader = read(write_bag(tmp_path / "bag", seconds=4.0, extra=extra))
    assert reader.goal_changes == 1
    assert [time for time, _ in reader.goals] == [START, START + 2 * NS]


def test_a_joint_state_that_is_missing_leaves_a_gap(tmp_path: Path) -> None:
    messages = [
        item
        for item in pusht_messages(3.0)
        if item[0] != "/joint_states" or not 1.0 < (item[1] - START) / NS < 1.5
    ]
    frames, _ = read(write_messages(tmp_path / "bag", messages))
    assert len(starts(frames)) == 2
    assert all(np.array_equal(f.observation.position, at(f)) for f in frames if clear(f))


def at(frame: Frame) -> np.ndarray:
    return position((frame.observation.stamp - START) / NS)


def clear(frame: Frame) -> bool:
    """Whether a joint state has the stamp of the picture."""
    return not 0.95 < (frame.observation.stamp - START) / NS < 1.55


def test_the_nearest_to_the_due_time_is_taken() -> None:
    found, counts = gridded([0.0, 0.08, 0.11, 0.2, 0.29, 0.33, 0.4])
    assert found == [(True, 0.0), (False, 0.11), (False, 0.2), (False, 0.29), (False, 0.4)]
    assert counts.decimated == 2


def test_a_clock_that_drifts_is_followed() -> None:
    found, counts = gridded([0.101 * k for k in range(300)])
    assert len(found) == 300
    assert [begins for begins, _ in found].count(True) == 1
    assert counts.gaps == []


def test_what_comes_late_or_twice_is_left_out_and_counted() -> None:
    found, counts = gridded([0.0, 0.1, 0.1, 0.2, 0.3, 0.05, 0.4])
    assert found == [(True, 0.0), *((False, t) for t in (0.1, 0.2, 0.3, 0.4))]
    assert counts.off_grid == 2
    found, counts = gridded([5.0, 5.1, 1.0, 1.1])
    assert found == [(True, 5.0), (False, 5.1), (True, 1.0), (False, 1.1)]


@given(
    st.lists(
        st.one_of(
            st.integers(90, 110), st.integers(0, 60), st.integers(-3000, 3000), st.just(36_000_000)
        ),
        max_size=60,
    )
)
@settings(max_examples=200, deadline=None)
def test_episodes_are_on_a_grid_whatever_comes(milliseconds: list[int]) -> None:
    stamps = np.cumsum([100_000, *milliseconds]) / 1000.0
    found, counts = gridded([float(s) for s in stamps])
    assert counts.observations == len(stamps)
    assert found[0][0]
    assert len(found) + counts.decimated + counts.off_grid == len(stamps), "nothing in silence"
    for (_, before), (begins, now) in pairwise(found):
        if not begins:
            assert STEP - 2 * TOLERANCE - 1e-6 <= now - before <= STEP + 2 * TOLERANCE + 1e-6
            assert now > before
        elif now <= before:
            assert before - now > BACK
    assert counts.largest_offset_ns <= TOLERANCE * NS


def test_a_joint_state_of_other_joints_gives_no_frame(tmp_path: Path) -> None:
    message = joint_state(START, np.zeros(2), np.zeros(2))
    message.name[:] = ["elbow", "wrist"]
    path = write_bag(
        tmp_path / "bag",
        seconds=0.5,
        joint_hz=0,
        extra=[("/joint_states", START + k, message) for k in range(3)],
    )
    frames, reader = read(path)
    assert frames == []
    assert reader.counts.refused == {"JOINT_NAMES_MISMATCH": 3}
