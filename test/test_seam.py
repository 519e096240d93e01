"""How the actions of a new plan take over from those that are executing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.evaluation.loop import Command
from worldforge_ros.evaluation.seams import PROFILE, joined, jumps, rms
from worldforge_ros.observation import Observation
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.handover import Handover, hand_over
from worldforge_ros.planning.seam import MOST_KEPT, SEAMS, Prediction, Seam, SeamSettings
from worldforge_ros.planning.sources import sent

PUSHT = load_embodiment("pusht")
MS = 1_000_000
STEP = 100 * MS
SEEN = 10_000 * MS
HORIZON = 8


def seen(stamp: int = SEEN, velocity: float = 0.1) -> Observation:
    return Observation(stamp, {}, np.array([0.2, 0.3]), np.array([velocity, 0.0]))


def chunk(start: int, actions: np.ndarray, sequence: int = 1) -> ActionChunk:
    names = PUSHT.joint_names
    return ActionChunk(start, "pusht", names, 0.1, actions, "policy", 1, sequence, start)


def steady(x: float, count: int = HORIZON) -> np.ndarray:
    return np.tile([x, 0.3], (count, 1))


def seam(mode: str, duration: float = 0.3, coefficient: float = 0.01) -> Seam:
    return Seam(SeamSettings(mode, duration, coefficient))


def remember(target: Seam, stamp: int, actions: np.ndarray, sequence: int = 1) -> None:
    target.sent(sequence, Prediction(stamp, 0.1, actions, stamp))
    target.approved(sequence)


def over(
    target: Seam, candidates: np.ndarray, executing: ActionChunk | None, latency: int = 0
) -> Handover:
    values = candidates.astype(np.float32)
    return hand_over(values, 0.1, seen(), executing, SEEN + latency * STEP, PUSHT, target)


def test_a_blend_fades_from_the_old_plan_to_the_new_one() -> None:
    old = chunk(SEEN - 2 * STEP, steady(0.2, 20))
    new = steady(0.24)[None]
    result = over(seam("blend", duration=0.3), new, old, latency=2)
    # Two past actions; then smoothstep of 1/4, 1/2 and 3/4: 3 w^2 - 2 w^3.
    weights = np.array([0.0, 0.0, 5 / 32, 0.5, 27 / 32, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(result.candidates[0, :, 0], 0.2 + 0.04 * weights, atol=1e-7)
    np.testing.assert_array_equal(result.proposed, new.astype(np.float32))


def test_a_chunk_that_ends_within_the_blend_stays_where_it_led() -> None:
    moving = steady(0.0, 3)
    moving[:, 0] = [0.10, 0.15, 0.20]
    result = over(seam("blend"), steady(0.24)[None], chunk(SEEN - STEP, moving))
    # At the hand-over its second action runs, then its third and last.
    expected = np.array([0.15, 0.20, 0.20]) + np.array([0.09, 0.04, 0.04]) * [5 / 32, 0.5, 27 / 32]
    np.testing.assert_allclose(result.candidates[0, :3, 0], expected, atol=1e-7)


def test_a_blend_of_no_time_is_a_switch() -> None:
    old = chunk(SEEN, steady(0.2, 20))
    new = np.random.default_rng(0).uniform(0.1, 0.3, (3, HORIZON, 2))
    for mode in ("switch", "blend"):
        result = over(seam(mode, duration=0.0), new, old, latency=3)
        np.testing.assert_array_equal(result.candidates[:, 3:], new[:, 3:].astype(np.float32))


def test_an_ensemble_weighs_every_plan_for_a_moment_by_its_age() -> None:
    target = seam("temporal_ensemble", coefficient=0.5)
    remember(target, SEEN - 4 * STEP, steady(0.20), 1)
    remember(target, SEEN - 2 * STEP, steady(0.24), 2)
    result = over(target, steady(0.30)[None], chunk(SEEN - 2 * STEP, steady(0.22), 2))
    w = np.exp(-0.5 * np.arange(3))
    three = (w[0] * 0.20 + w[1] * 0.24 + w[2] * 0.30) / w.sum()
    two = (w[0] * 0.24 + w[1] * 0.30) / w[:2].sum()
    # The first plan has actions for four steps from here, the second for six.
    expected = [three] * 4 + [two] * 2 + [0.30] * 2
    np.testing.assert_allclose(result.candidates[0, :, 0], expected, atol=1e-7)


def test_an_ensemble_is_lerobot_s() -> None:
    torch = pytest.importorskip("torch", reason="the package torch is not installed")
    act = pytest.importorskip(
        "lerobot.policies.act.modeling_act", reason="the package lerobot is not installed"
    )
    rng = np.random.default_rng(3)
    chunks = rng.uniform(0.19, 0.21, (30, HORIZON, 2)).astype(np.float32)
    theirs = act.ACTTemporalEnsembler(0.01, HORIZON)
    expected = [theirs.update(torch.from_numpy(item[None]))[0].numpy() for item in chunks]
    target = seam("temporal_ensemble", coefficient=0.01)
    executing, found = None, []
    for index, item in enumerate(chunks):
        stamp = SEEN + index * STEP
        result = hand_over(item[None], 0.1, seen(stamp), executing, stamp, PUSHT, target)
        assert result.first == 0
        executing = chunk(stamp, result.candidates[0].astype(np.float64), index + 1)
        sent(target, executing, result.proposed[0])
        target.approved(executing.sequence)
        found.append(result.candidates[0, 0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_what_an_ensemble_remembers_is_bounded() -> None:
    target = seam("temporal_ensemble")
    for index in range(MOST_KEPT + 5):
        remember(target, SEEN + index * MS, steady(0.2), index + 1)
    assert len(target.kept) == MOST_KEPT
    assert target.kept[0].stamp == SEEN + 5 * MS
    late = SEEN + HORIZON * STEP + 50 * MS
    hand_over(
        steady(0.2)[None].astype(np.float32),
        0.1,
        seen(late),
        chunk(late, steady(0.2)),
        late,
        PUSHT,
        target,
    )
    assert target.kept[0].end > late, "what is over is dropped"


def test_only_approved_plans_are_remembered_and_all_is_forgotten_at_once() -> None:
    target = seam("temporal_ensemble")
    target.sent(1, Prediction(SEEN, 0.1, steady(0.2), SEEN))
    assert not target.kept
    target.approved(1)
    assert len(target.kept) == 1
    target.approved(7)
    assert not target.kept, "somebody else's chunk executes"
    remember(target, SEEN, steady(0.2), 2)
    target.forget()
    assert not target.kept


def test_a_plan_that_began_before_a_new_goal_is_not_remembered() -> None:
    target = seam("temporal_ensemble")
    target.sent(1, Prediction(SEEN, 0.1, steady(0.2), SEEN))
    target.forget(observed_before=SEEN + 1)
    target.approved(1)
    assert not target.kept
    remember(target, SEEN + STEP, steady(0.2), 2)
    assert len(target.kept) == 1


def test_a_seam_that_is_too_fast_is_not_reachable() -> None:
    # 0.1 m a step is PushT's limit: a blend over 0.3 s makes at most 11/32 of the way in one.
    old = chunk(SEEN - 2 * STEP, steady(0.0, 20))
    near, far = steady(0.28), steady(0.30)
    assert over(seam("switch"), np.stack([near, far]), old).reachable.tolist() == [False, False]
    assert over(seam("blend"), np.stack([near, far]), old).reachable.tolist() == [True, False]
    target = seam("temporal_ensemble", coefficient=0.0)
    remember(target, SEEN - 4 * STEP, steady(0.0))
    jumpy = steady(0.15)
    # Half of the way while the old plan reaches, the other half in the step after it.
    assert over(target, np.stack([jumpy, steady(0.21)]), old).reachable.tolist() == [True, False]


actions = st.lists(
    st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 0.5)), min_size=HORIZON, max_size=HORIZON
).map(np.array)


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(SEAMS),
    old=actions,
    older=actions,
    new=actions,
    latency=st.integers(0, HORIZON + 1),
    ages=st.tuples(st.integers(0, 900), st.integers(0, 900)),
    coefficient=st.floats(-5.0, 5.0),
    duration=st.floats(0.0, 2.0),
)
def test_new_actions_lie_between_the_plans_and_past_ones_are_left_alone(
    mode: str,
    old: np.ndarray,
    older: np.ndarray,
    new: np.ndarray,
    latency: int,
    ages: tuple[int, int],
    coefficient: float,
    duration: float,
) -> None:
    target = seam(mode, duration, coefficient)
    stamps = [SEEN - age * MS for age in ages]
    remember(target, stamps[0], older, 1)
    remember(target, stamps[1], old, 2)
    executing = chunk(stamps[1], old, 2)
    switched = over(seam("switch"), new[None], executing, latency)
    result = over(target, new[None], executing, latency)
    assert (result.first, result.stamp) == (switched.first, switched.stamp)
    first = result.first
    # At the end of the executing chunk a blend begins where the robot is held.
    runs_on = stamps[1] + HORIZON * STEP > SEEN + first * STEP
    np.testing.assert_array_equal(result.candidates[:, :first], switched.candidates[:, :first])
    for index in range(first, HORIZON):
        middle = SEEN + index * STEP + STEP // 2
        inputs = [new[index]]
        for stamp, plan in zip(stamps, (older, old), strict=True):
            place = (middle - stamp) // STEP
            if place < HORIZON:
                inputs.append(plan[place])
            elif plan is old and mode == "blend":
                inputs.append(plan[-1] if runs_on else seen().position)
        low, high = np.min(inputs, axis=0), np.max(inputs, axis=0)
        assert (result.candidates[0, index] >= low - 1e-6).all()
        assert (result.candidates[0, index] <= high + 1e-6).all()


@settings(max_examples=30, deadline=None)
@given(
    new=actions,
    older=actions,
    latency=st.integers(0, HORIZON),
    velocity=st.sampled_from([0.0, 0.2]),
    ended=st.booleans(),
)
def test_without_an_executing_chunk_nothing_is_averaged_and_a_blend_begins_at_the_hold(
    new: np.ndarray, older: np.ndarray, latency: int, velocity: float, ended: bool
) -> None:
    executing = chunk(SEEN - 2 * HORIZON * STEP, older) if ended else None
    found = {}
    for mode in SEAMS:
        target = seam(mode)
        remember(target, SEEN - STEP, older)
        values = new[None].astype(np.float32)
        arrival = SEEN + latency * STEP
        found[mode] = hand_over(
            values, 0.1, seen(velocity=velocity), executing, arrival, PUSHT, target
        )
    switched, blended = found["switch"], found["blend"]
    averaged = found["temporal_ensemble"]
    for result in (averaged, blended):
        assert (result.stamp, result.first) == (switched.stamp, switched.first)
    np.testing.assert_array_equal(averaged.candidates, switched.candidates)
    np.testing.assert_array_equal(averaged.reachable, switched.reachable)
    first = switched.first
    place = np.array([0.2, 0.3])
    weights = np.array([5 / 32, 0.5, 27 / 32] + [1.0] * HORIZON)[: HORIZON - first, None]
    expected = place + weights * (new[first:] - place)
    np.testing.assert_allclose(blended.candidates[0, first:], expected, atol=1e-6)
    np.testing.assert_array_equal(blended.candidates[:, :first], switched.candidates[:, :first])


def test_a_blend_leads_a_resting_robot_onto_a_plan_that_a_switch_cannot_reach() -> None:
    # 0.15 m from where it is; 0.1 m a step are allowed.
    new = steady(0.35)[None]
    result = over(seam("switch"), new, None)
    assert result.reachable.tolist() == [False]
    assert over(seam("blend"), new, None).reachable.tolist() == [True]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (("fade", 0.3, 0.01), "seam is 'fade'; expected one of switch, temporal_ensemble, blend"),
        (("blend", -0.1, 0.01), "seam duration is -0.1 s"),
        (("blend", float("nan"), 0.01), "seam duration is nan s"),
        (("blend", 11.0, 0.01), "seam duration is 11.0 s"),
        (("temporal_ensemble", 0.3, float("inf")), "ensemble coefficient is inf"),
        (("temporal_ensemble", 0.3, -6.0), "ensemble coefficient is -6.0; expected -5 to 5"),
    ],
)
def test_impossible_settings_are_refused(values: tuple[str, float, float], named: str) -> None:
    with pytest.raises(WorldForgeError, match=named.replace(".", r"\.")) as caught:
        SeamSettings(*values)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def commands(positions: list[float], chunks: list[int]) -> list[Command]:
    return [Command(np.array([x]), n) for x, n in zip(positions, chunks, strict=True)]


def test_jumps_by_hand() -> None:
    # Velocities 1, 1, 3, 1, 1 at a step of 0.5 s; the third set-point begins a chunk.
    found = jumps(commands([0.0, 0.5, 1.0, 2.5, 3.0, 3.5], [1, 1, 1, 2, 2, 2]), 0.5)
    velocity, acceleration = found["velocity"], found["acceleration"]
    assert velocity.across[:, 0].tolist() == [2.0, -2.0]
    assert velocity.within[:, 0].tolist() == [0.0, 0.0]
    # Accelerations 0, 4, -4, 0 m/s^2.
    assert acceleration.across[:, 0].tolist() == [4.0, -8.0, 4.0]
    assert acceleration.within.shape == (0, 1)
    around = dict(zip(PROFILE, velocity.profile[0, :, 0], strict=True))
    assert (around[-1], around[0], around[1], around[2]) == (0.0, 2.0, -2.0, 0.0)
    assert np.isnan(around[-2])
    assert np.isnan(around[3])


def test_set_points_of_a_hold_are_no_seam() -> None:
    found = jumps(commands([0.0, 0.0, 0.0, 1.0, 2.0, 3.0], [0, 0, 0, 1, 1, 1]), 1.0)
    assert found["velocity"].across.shape == (0, 1)
    assert found["velocity"].within[:, 0].tolist() == [0.0]
    assert found["velocity"].profile.shape == (0, len(PROFILE), 1)
    two = joined([found["velocity"], found["velocity"]])
    assert two.within.shape == (2, 1)


def test_the_root_mean_square_leaves_out_what_is_not_there() -> None:
    values = np.array([[3.0, np.nan], [4.0, np.nan]])
    assert rms(values)[0] == pytest.approx(np.sqrt(12.5))
    assert np.isnan(rms(values)[1])
