"""The ALOHA world behind radians, metres and set-points, against gym-aloha; its scripted expert."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("MUJOCO_GL", "egl")
pytest.importorskip("gym_aloha", reason="gym-aloha is missing: set up with make setup")

from worldforge_ros.embodiment import StateFeature, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.safety.limits import limits_of
from worldforge_ros.simulation.aloha import (
    CONTROL_STEP,
    GRIPPER_CLOSED,
    GRIPPER_OPEN,
    GRIPPERS,
    JOINT_NAMES,
    PHYSICS_STEP,
    SUCCESS_REWARD,
    AlohaSimulation,
)
from worldforge_ros.simulation.robot import SimulatedRobot
from worldforge_ros.training.aloha_demos import demonstrate
from worldforge_ros.training.aloha_expert import REST, REST_GRIPPER, ArmKinematics, Expert, Style

ALOHA = load_embodiment("aloha")
TICKS = round(CONTROL_STEP / PHYSICS_STEP)


@pytest.fixture(scope="module")
def world() -> AlohaSimulation:
    return AlohaSimulation()


def normalised(joints: np.ndarray) -> np.ndarray:
    """Joints (14,) with grippers from 0, closed, to 1, open, as gym-aloha has them."""
    values = np.array(joints)
    for index in GRIPPERS:
        values[index] = (values[index] - GRIPPER_CLOSED) / (GRIPPER_OPEN - GRIPPER_CLOSED)
    return values


def test_a_control_step_is_one_step_of_gym_aloha(world: AlohaSimulation) -> None:
    from gym_aloha.env import AlohaEnv

    env = AlohaEnv("transfer_cube", obs_type="pixels_agent_pos")
    observation, _ = env.reset(seed=3)
    world.reset(seed=3)
    np.testing.assert_allclose(normalised(world.position), observation["agent_pos"], atol=1e-12)
    rng = np.random.default_rng(0)
    setpoint = world.position
    for _ in range(8):
        setpoint = setpoint + rng.uniform(-0.05, 0.05, 14)
        setpoint[list(GRIPPERS)] = rng.uniform(0.021, 0.057, 2)
        observation, reward, _, _, _ = env.step(normalised(setpoint))
        world.advance(setpoint, TICKS)
        np.testing.assert_allclose(normalised(world.position), observation["agent_pos"], atol=1e-9)
        assert world.reward() == reward
    data = env.unwrapped._env.physics.data
    np.testing.assert_allclose(world.state[:23], data.qpos, atol=1e-9)
    np.testing.assert_array_equal(world.image(), observation["pixels"]["top"])


def test_the_embodiment_file_is_the_model(world: AlohaSimulation) -> None:
    assert ALOHA.joint_names == JOINT_NAMES
    assert ALOHA.policy.step == CONTROL_STEP
    limits = limits_of(ALOHA)
    assert not limits.missing
    model = world.model
    names = [f"vx300s_{name.replace('_', '/', 1)}" for name in JOINT_NAMES]
    names = [name.replace("gripper", "left_finger") for name in names]
    ranges = np.array([model.joint(name).range for name in names])
    arms = [index for index, name in enumerate(JOINT_NAMES) if not name.endswith("gripper")]
    assert (limits.lower[arms] >= ranges[arms, 0]).all()
    assert (limits.upper[arms] <= ranges[arms, 1]).all()
    # A gripper is sent where ALOHA's policies say 0 and 1, and stops a little earlier.
    for index in set(range(14)) - set(arms):
        assert limits.lower[index] < np.float32(0.01844) < ranges[index, 0]
        assert ranges[index, 1] < np.float32(0.058) < limits.upper[index]
    feature = ALOHA.policy.features["observation.state"]
    assert isinstance(feature, StateFeature)
    assert feature.joints == JOINT_NAMES
    joints = np.linspace(0.02, 0.05, 14)
    for part in (feature, ALOHA.policy.action):
        found = joints * part.scale + part.offset
        np.testing.assert_allclose(found, normalised(joints), atol=1e-7)


def test_a_state_can_be_gone_back_to(world: AlohaSimulation) -> None:
    world.reset(seed=5)
    plan = Expert().plan(world.cube)
    for setpoint in plan[:120]:
        world.advance(setpoint, TICKS)
    state, reward = world.state, world.reward()
    ends = []
    for _ in range(2):
        world.set_state(state)
        np.testing.assert_array_equal(world.state, state)
        assert world.reward() == reward
        world.advance(plan[120], 50)
        ends.append(world.state)
    np.testing.assert_array_equal(ends[0], ends[1])


def test_the_goal_is_a_solved_task_that_stays_solved(world: AlohaSimulation) -> None:
    from worldforge_ros.simulation.aloha import GOAL_STATE

    world.reset(seed=1)
    before = world.state
    goal = world.goal_image()
    np.testing.assert_array_equal(world.state, before)
    assert goal.shape == (480, 640, 3)
    assert goal.dtype == np.uint8
    world.set_state(GOAL_STATE)
    np.testing.assert_array_equal(world.image(), goal)
    assert world.success
    rewards = []
    for _ in range(25):
        world.advance(GOAL_STATE[45:61][[*range(7), *range(8, 15)]], TICKS)
        rewards.append(world.reward())
    # A held cube loses touch with a finger for a step now and then.
    assert np.mean(np.array(rewards) == SUCCESS_REWARD) > 0.7
    assert world.cube[2] > 0.2


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda w: w.reset(cube=[0.1, 0.5]), ErrorCode.INVALID_ARGUMENT),
        (lambda w: w.reset(cube=[0.1, 0.5, np.nan]), ErrorCode.INVALID_ARGUMENT),
        (lambda w: w.set_state(np.zeros(60)), ErrorCode.INVALID_ARGUMENT),
        (lambda w: w.advance(np.zeros(16)), ErrorCode.TENSOR_SHAPE_MISMATCH),
        (lambda w: w.advance(np.full(14, np.inf)), ErrorCode.TENSOR_NOT_FINITE),
    ],
)
def test_bad_input_has_its_code_and_changes_nothing(
    world: AlohaSimulation, act: object, code: ErrorCode
) -> None:
    world.reset(seed=2)
    before = world.state
    with pytest.raises(WorldForgeError) as caught:
        act(world)  # type: ignore[operator]
    assert caught.value.code is code
    np.testing.assert_array_equal(world.state, before)


def test_the_robot_holds_when_commands_stop(world: AlohaSimulation) -> None:
    robot = SimulatedRobot(world, JOINT_NAMES, PHYSICS_STEP, seed=4, command_timeout=0.1)
    target = world.position
    target[7] += 0.5
    steps = 150
    robot.follow(JOINT_NAMES, [0.5], [target.tolist()])
    for _ in range(steps):
        robot.step()
    # In a straight line to the target, less the tracking error at 1 rad/s.
    assert world.position[7] == pytest.approx(0.5 * steps * PHYSICS_STEP / 0.5, abs=0.08)
    robot.command(target)
    for _ in range(300):
        robot.step()
    held = world.position
    assert 0.3 < held[7] < 0.48, "it did not go on to the old set-point"
    for _ in range(100):
        robot.step()
    np.testing.assert_allclose(world.position, held, atol=5e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_closed_form_is_mujocos_kinematics(world: AlohaSimulation, side: str) -> None:
    import mujoco

    model = world.model
    data = mujoco.MjData(model)
    arm = ArmKinematics(side)
    names = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
    addresses = [model.joint(f"vx300s_{side}/{name}").qposadr[0] for name in names]
    body = model.body(f"vx300s_{side}/gripper_link").id
    rng = np.random.default_rng(6)
    inward = 1.0 if side == "left" else -1.0
    base = np.array([-0.469 * inward, 0.5, 0.0])
    for _ in range(10):
        away = (inward * rng.uniform(0.3, 0.5), rng.uniform(-0.1, 0.1), rng.uniform(0.0, 0.3))
        wanted = base + away
        pitch, roll = rng.uniform(0.0, 1.1), rng.uniform(-1.5, 1.5)
        joints = arm.solve(wanted, pitch, roll)
        data.qpos[addresses] = joints
        mujoco.mj_kinematics(model, data)
        rotation = data.xmat[body].reshape(3, 3)
        np.testing.assert_allclose(data.xpos[body] + 0.14 * rotation[:, 0], wanted, atol=1e-5)
        assert -rotation[2, 0] == pytest.approx(np.sin(pitch), abs=1e-5)
        assert rotation[2, 1] == pytest.approx(np.cos(pitch) * np.sin(roll), abs=1e-5)
        point, angle = arm.forward(joints)
        np.testing.assert_allclose(point, wanted, atol=1e-12)
        assert float(angle) == pytest.approx(pitch)


def test_a_place_out_of_reach_is_refused() -> None:
    with pytest.raises(WorldForgeError) as caught:
        Expert().plan([-0.5, 0.5, 0.02])
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("seed", [100_000, 100_001, 100_002])
def test_the_expert_hands_the_cube_over_within_all_limits(
    world: AlohaSimulation, seed: int
) -> None:
    episode = demonstrate(world, Expert(), seed)
    assert episode.solved
    assert episode.reward.max() == SUCCESS_REWARD
    limits = limits_of(ALOHA)
    start = np.array([*REST, REST_GRIPPER] * 2)
    for setpoints in (episode.action, episode.label):
        assert not limits.outside(setpoints.astype(np.float64)).any()
        speed = np.abs(np.diff(setpoints, axis=0, prepend=start[None])) / CONTROL_STEP
        assert (speed <= limits.max_velocity + 1e-4).all()
    assert not limits.outside(episode.position.astype(np.float64)).any(), "nothing overshoots"


def test_plans_for_one_cube_differ(world: AlohaSimulation) -> None:
    expert = Expert()
    plans = [
        expert.plan([0.1, 0.5, 0.02], Style.draw(np.random.default_rng(seed))) for seed in (1, 2)
    ]
    steps = min(map(len, plans))
    assert np.abs(plans[0][:steps] - plans[1][:steps]).max() > 0.1
    assert len(plans[0]) != len(plans[1])
