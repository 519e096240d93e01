"""The PushT world behind metres and set-points, against gym-pusht itself."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")

from worldforge_ros.bridges.tracking import expected_positions
from worldforge_ros.embodiment import Tracking, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.simulation.pusht import JOINT_NAMES, PHYSICS_STEP, PushTSimulation
from worldforge_ros.simulation.robot import SimulatedRobot

PUSHT = load_embodiment("pusht")


def pusher(seed: int, command_timeout: float = 0.5) -> SimulatedRobot[PushTSimulation]:
    return SimulatedRobot(PushTSimulation(), JOINT_NAMES, PHYSICS_STEP, seed, command_timeout)


def test_ten_physics_steps_are_one_step_of_gym_pusht() -> None:
    from gym_pusht.envs.pusht import PushTEnv

    env = PushTEnv(obs_type="pixels_agent_pos")
    world = PushTSimulation()
    rng = np.random.default_rng(0)
    for seed in range(3):
        env.reset(seed=seed)
        world.reset(seed=seed)
        for _ in range(30):
            action = rng.uniform(50, 450, 2)
            observation, _, _, _, info = env.step(action)
            world.advance(action / 1000.0, steps=10)
            np.testing.assert_allclose(world.position * 1000.0, info["pos_agent"], atol=1e-9)
            np.testing.assert_allclose(world.state[2:], info["block_pose"], atol=1e-9)
            assert world.coverage() == pytest.approx(info["coverage"])
        np.testing.assert_array_equal(world.image(), observation["pixels"])


def test_the_tracking_law_predicts_the_pusher_exactly() -> None:
    world = PushTSimulation()
    world.reset(seed=5)
    rng = np.random.default_rng(1)
    setpoints = rng.uniform(0.1, 0.4, (20, 2))
    expected = expected_positions(PUSHT.tracking, world.position, world.velocity, setpoints, 0.1)
    for index, setpoint in enumerate(setpoints):
        np.testing.assert_allclose(world.position, expected[index], atol=1e-12)
        world.advance(setpoint, 10)


def test_perfect_tracking_is_at_the_previous_set_point() -> None:
    setpoints = np.array([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]])
    expected = expected_positions(Tracking("perfect"), [0.0, 0.1], [9.0, 9.0], setpoints, 0.1)
    np.testing.assert_array_equal(expected, [[[0.0, 0.1], [0.1, 0.2], [0.3, 0.4]]])


def test_the_goal_picture_leaves_the_world_as_it_was() -> None:
    world = PushTSimulation()
    world.reset(seed=2)
    world.advance([0.3, 0.3], 25)
    before, velocity, picture = world.state, world.velocity, world.image()
    goal = world.goal_image()
    np.testing.assert_allclose(world.state, before)
    np.testing.assert_allclose(world.velocity, velocity)
    np.testing.assert_array_equal(world.image(), picture)
    world.set_state([128.0, 384.0, *world.goal_pose])
    np.testing.assert_array_equal(world.image(), goal)
    assert world.coverage() == pytest.approx(1.0)


def test_a_bad_state_is_refused() -> None:
    with pytest.raises(WorldForgeError) as caught:
        PushTSimulation().reset(state=[1.0, 2.0])
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_the_pusher_holds_when_commands_stop() -> None:
    robot = pusher(1, command_timeout=0.2)
    start = robot.world.position
    target = start + np.where(start < 0.25, 0.2, -0.2)
    robot.command(target)
    for _ in range(20):
        robot.step()
    assert np.abs(robot.world.velocity).max() > 0.1
    for _ in range(200):
        robot.step()
    held = robot.world.position
    assert np.abs(held - target).max() > 0.02, "it did not go on to the old set-point"
    robot.step()
    np.testing.assert_allclose(robot.world.position, held, atol=1e-6)


def test_a_trajectory_moves_in_straight_lines_and_ends_at_its_last_point() -> None:
    robot = pusher(1)
    robot.follow(["pusher_y", "pusher_x"], [1.0, 2.0], [[0.2, 0.3], [0.25, 0.35]])
    for _ in range(400):
        robot.step()
    np.testing.assert_allclose(robot.world.position, [0.35, 0.25], atol=1e-3)


@pytest.mark.parametrize(
    ("names", "times", "positions", "code"),
    [
        (["pusher_x"], [1.0], [[0.1]], ErrorCode.JOINT_NAMES_MISMATCH),
        (["pusher_x", "pusher_y"], [], [], ErrorCode.INVALID_ARGUMENT),
        (["pusher_x", "pusher_y"], [1.0, 1.0], [[0.1, 0.1]] * 2, ErrorCode.INVALID_ARGUMENT),
        (["pusher_x", "pusher_y"], [-1.0], [[0.1, 0.1]], ErrorCode.INVALID_ARGUMENT),
        (["pusher_x", "pusher_y"], [1.0], [[0.1]], ErrorCode.TENSOR_SHAPE_MISMATCH),
        (["pusher_x", "pusher_y"], [1.0], [[0.1, np.nan]], ErrorCode.TENSOR_NOT_FINITE),
    ],
)
def test_a_bad_trajectory_has_its_code_and_changes_nothing(
    names: list[str], times: list[float], positions: list[list[float]], code: ErrorCode
) -> None:
    robot = pusher(1)
    before = robot.world.position
    with pytest.raises(WorldForgeError) as caught:
        robot.follow(names, times, positions)
    assert caught.value.code is code
    for _ in range(50):
        robot.step()
    np.testing.assert_allclose(robot.world.position, before, atol=1e-9)


def test_each_reset_takes_the_next_seed() -> None:
    robot = pusher(7)
    assert [robot.reset(), robot.reset()] == [8, 9]
    world = PushTSimulation()
    world.reset(seed=9)
    np.testing.assert_array_equal(robot.world.state, world.state)
