"""Frames of PushT in Gazebo, starts of episodes, and the way there; no ROS."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.simulation.gazebo_pusht import (
    BAR,
    RETRY,
    SIDE,
    SPEED,
    STEM,
    MovePusher,
    PlaceBlock,
    Placement,
    Pose,
    Seen,
    block_of,
    outline,
    parking,
    pose_of,
    start_state,
    way,
)

PLACE = st.floats(0.015, 0.497)
START = np.array([300.0, 200.0, 150.0, 350.0, 1.0])
PUSHER_RADIUS = 15.0


@given(st.floats(0.0, 512.0), st.floats(0.0, 512.0), st.floats(-3.1, 3.1), st.floats(-0.1, 0.1))
def test_a_block_comes_back_from_gazebos_frame(x: float, y: float, angle: float, z: float) -> None:
    pose = pose_of([x, y, angle], z)
    assert pose.position[2] == z
    np.testing.assert_allclose(block_of(pose), [x, y, angle], atol=1e-9)


def test_gazebos_y_and_yaw_are_gym_pushts_the_other_way_round() -> None:
    pose = pose_of([256.0, 100.0, math.pi / 2], 0.01)
    np.testing.assert_allclose(pose.position, [0.256, -0.1, 0.01])
    np.testing.assert_allclose(pose.quaternion, [0.0, 0.0, -math.sqrt(0.5), math.sqrt(0.5)])


@pytest.mark.parametrize(
    ("quaternion", "code"),
    [
        ([math.sin(0.2), 0.0, 0.0, math.cos(0.2)], ErrorCode.SIMULATION_UNAVAILABLE),
        ([1.0, 0.0, 0.0, 0.0], ErrorCode.SIMULATION_UNAVAILABLE),
        ([0.0, 0.0, 0.0, 0.0], ErrorCode.TENSOR_NOT_FINITE),
        ([0.0, 0.0, math.nan, 1.0], ErrorCode.TENSOR_NOT_FINITE),
    ],
)
def test_a_block_that_does_not_lie_on_the_table_is_refused(
    quaternion: list[float], code: ErrorCode
) -> None:
    with pytest.raises(WorldForgeError) as caught:
        block_of(Pose(np.zeros(3), np.array(quaternion)))
    assert caught.value.code is code


def test_the_outline_is_gym_pushts_block() -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")
    from worldforge_ros.simulation.pusht import PushTSimulation

    world = PushTSimulation()
    world.set_state([50.0, 50.0, *START[2:]])
    points = outline(START[2:])
    for corner in world.keypoints():
        assert np.linalg.norm(points - corner, axis=1).min() < 1e-6
    assert len(BAR) + len(STEM) == len(world.keypoints())


def test_an_episode_starts_as_in_the_built_in_simulator_but_at_rest() -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")
    from worldforge_ros.simulation.pusht import PushTSimulation

    world, other = PushTSimulation(), PushTSimulation()
    moved = 0
    for seed in range(12):
        start = start_state(world, seed)
        other.reset(seed=seed)
        np.testing.assert_allclose(start[:2], other.state[:2])
        moved += not np.allclose(start, other.state, atol=0.5)
        other.set_state(start)
        other.advance(other.position, 20)
        np.testing.assert_allclose(other.state, start, atol=1.0)
    assert moved < 6, "most starts are gym-pusht's own"


@given(st.tuples(PLACE, PLACE), st.tuples(PLACE, PLACE))
def test_there_is_always_room_for_the_way(
    begin: tuple[float, float], end: tuple[float, float]
) -> None:
    points = outline(parking(begin, end))
    assert points.min() > 0.0
    assert points.max() < SIDE
    path = way(begin, end)
    gap = points[:, np.newaxis] - path.positions[np.newaxis] * 1000.0
    assert np.linalg.norm(gap, axis=2).min() > 2 * PUSHER_RADIUS
    np.testing.assert_allclose(path.positions[-1], end)
    steps = np.diff(np.vstack([begin, path.positions]), axis=0)
    spans = np.diff(path.times, prepend=0.0)
    assert (np.linalg.norm(steps, axis=1) <= SPEED * spans * (1 + 1e-9)).all()


class World:
    """Does what it is asked, unless it is deaf."""

    def __init__(self, pusher: tuple[float, float] = (0.1, 0.1)) -> None:
        self.pusher = np.array(pusher)
        self.block = np.array([400.0, 400.0, 0.0])
        self.now, self.stamp, self.deaf = 0.0, 0, 0
        self.asked: list[object] = []

    def run(self, placement: Placement, seconds: float = 20.0) -> None:
        while self.now < seconds and not placement.done:
            self.now += 0.02
            self.stamp += 20_000_000
            seen = Seen(self.pusher, 0.0, self.block, self.stamp)
            command = placement.step(seen, self.now)
            if command is None:
                continue
            self.asked.append(command)
            self.deaf -= 1
            if self.deaf >= 0:
                continue
            if isinstance(command, PlaceBlock):
                self.block = command.block
            else:
                self.pusher = command.positions[-1]


def test_the_block_is_out_of_the_way_until_the_pusher_is_there() -> None:
    world, placement = World(), Placement(START)
    world.run(placement)
    assert placement.done
    assert [type(command) for command in world.asked] == [PlaceBlock, MovePusher, PlaceBlock]
    np.testing.assert_allclose(world.pusher * 1000.0, START[:2])
    np.testing.assert_allclose(world.block, START[2:])


def test_a_pusher_that_is_there_stays() -> None:
    world, placement = World((0.3, 0.2)), Placement(START)
    world.run(placement)
    assert placement.done
    assert [type(command) for command in world.asked] == [PlaceBlock]


def test_what_is_lost_is_asked_for_again() -> None:
    world, placement = World(), Placement(START)
    world.deaf = 2
    world.run(placement)
    assert placement.done
    assert [type(command) for command in world.asked[:4]] == [PlaceBlock] * 3 + [MovePusher]
    assert world.now > 2 * RETRY


def test_a_block_that_moves_is_waited_for_and_a_world_that_does_nothing_never_ends() -> None:
    world, placement = World((0.3, 0.2)), Placement(START)
    placement.step(Seen(world.pusher, 0.0, world.block, 0), 0.0)
    for index in range(1, 5):
        # 1 mm in 20 ms.
        block = START[2:] + np.array([index * 0.5, 0.0, 0.0])
        placement.step(Seen(world.pusher, 0.0, block, index * 20_000_000), 0.02 * index)
    assert not placement.done
    stuck, world = Placement(START), World()
    world.deaf = 1000
    world.run(stuck)
    assert not stuck.done
    assert stuck.waits_for == "the T out of the pusher's way"
