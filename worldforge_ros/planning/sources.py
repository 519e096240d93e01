"""Candidates beside those of the policy or the search: stay, go on, or what a user sends.

``hold`` stays at the set-point that is in force when it takes effect; where nothing executes that
is the measured position. ``tail`` is what is left of the executing chunk and after its end its last
set-point; it is offered while something is left. Both begin where the robot is sent, so that no
seam changes them, and neither predicts anything for a temporal ensemble: a chosen ``tail`` leaves
what is remembered as it is, a chosen ``hold`` ends it.

``supplied`` is a user's chunk. Like a policy's candidate it is a plan from the observation that the
cycle begins with: its first action is due with theirs, and actions that are past when it can take
effect are replaced by what is really executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import NANOSECONDS, Observation, seconds_to_ns
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.planning.handover import Handover, hand_over, setpoint_at
from worldforge_ros.planning.seam import Prediction, Seam

EXTRA_SOURCES = ("hold", "tail", "supplied")
SLACK = 1e-6
"""m or rad that a supplied set-point may lie outside a limit, because chunks travel as float32."""
FUTURE_TOLERANCE = 0.2
"""Seconds that the stamp of a supplied chunk may lie ahead."""


def check_extra_sources(names: Sequence[str]) -> tuple[str, ...]:
    """``names`` as they are.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for an unknown name or one that is given twice.
    """
    if len(set(names)) != len(names) or not set(names) <= set(EXTRA_SOURCES):
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "extra_sources",
            found=list(names),
            expected=f"any of {', '.join(EXTRA_SOURCES)}, each at most once",
        )
    return tuple(names)


@dataclass(frozen=True)
class Offer:
    """What is offered beside the candidates that were asked for; ``supplied`` (H, J) in m or rad,
    None where there is none now.
    """

    names: tuple[str, ...] = ()
    supplied: npt.NDArray[np.float32] | None = None


def offer(
    candidates: npt.NDArray[np.float32],
    step: float,
    observation: Observation,
    executing: ActionChunk | None,
    arrival: int,
    embodiment: Embodiment,
    seam: Seam,
    extras: Offer,
) -> Handover:
    """Hand over ``candidates`` (S, H, J) and append those of ``extras``, named in the result.

    Arguments as of :func:`~worldforge_ros.planning.handover.hand_over`.
    """
    added: tuple[str, ...] = ()
    if extras.supplied is not None and "supplied" in extras.names:
        candidates = np.concatenate([candidates, extras.supplied[np.newaxis]])
        added = ("supplied",)
    handover = hand_over(candidates, step, observation, executing, arrival, embodiment, seam)
    if handover.first == candidates.shape[1]:
        return replace(handover, extras=added)
    period = seconds_to_ns(step)
    times = handover.stamp + np.arange(handover.first, candidates.shape[1]) * period
    rows = []
    if "hold" in extras.names:
        place = setpoint_at(executing, observation.position, int(times[0]) - 1)
        rows.append(np.broadcast_to(place, (len(times), len(place))))
        added = (*added, "hold")
    if "tail" in extras.names and executing is not None:
        index = (times + period // 2 - executing.stamp) // seconds_to_ns(executing.step)
        if 0 <= index[0] < len(executing.actions):
            rows.append(executing.actions[np.minimum(index, len(executing.actions) - 1)])
            added = (*added, "tail")
    if not rows:
        return replace(handover, extras=added)
    # What is past was executed whatever comes next: the same for all.
    past = np.repeat(handover.candidates[:1, : handover.first], len(rows), axis=0)
    exact = np.concatenate([past, np.stack(rows).astype(np.float32)], axis=1)
    return replace(
        handover,
        candidates=np.concatenate([handover.candidates, exact]),
        reachable=np.concatenate([handover.reachable, np.ones(len(rows), dtype=np.bool_)]),
        proposed=np.concatenate([handover.proposed, exact]),
        extras=added,
    )


def sent(seam: Seam, chunk: ActionChunk, proposed: npt.NDArray[np.float32]) -> None:
    """Tell ``seam`` that ``chunk`` went to the gate, ``proposed`` (H, J) being what its source had
    offered.
    """
    if chunk.source == "hold":
        seam.forget()
    prediction = None
    if chunk.source not in ("hold", "tail"):
        actions = proposed.astype(np.float64)
        prediction = Prediction(chunk.stamp, chunk.step, actions, chunk.observation_stamp)
    seam.sent(chunk.sequence, prediction)


class Supplied:
    """The newest chunk that a user supplied, until it was chosen or is older than ``max_age``
    seconds.

    A chunk's age is counted from its ``stamp``, when its first action is due.
    """

    def __init__(self, embodiment: Embodiment, max_age: float = 0.5) -> None:
        self._embodiment = embodiment
        self._max_age = max_age
        self._held: ActionChunk | None = None
        self._offered: ActionChunk | None = None

    def take(self, chunk: ActionChunk, now: int) -> None:
        """Keep ``chunk`` in the place of the one before.

        :param now: ns of ROS time.
        :raises WorldForgeError: ``EMBODIMENT_MISMATCH``, ``JOINT_NAMES_MISMATCH``,
            ``TENSOR_SHAPE_MISMATCH``, ``TENSOR_NOT_FINITE``, ``NO_REACHABLE_CANDIDATE`` (beyond a
            joint's range), ``STAMP_INVALID`` or ``CANDIDATE_STALE``; what was held before stays.
        """
        robot = self._embodiment
        if chunk.embodiment != robot.name:
            raise mismatch(
                ErrorCode.EMBODIMENT_MISMATCH,
                "embodiment of the supplied chunk",
                found=f"'{chunk.embodiment}'",
                expected=f"'{robot.name}'",
            )
        if chunk.joint_names != robot.joint_names:
            raise mismatch(
                ErrorCode.JOINT_NAMES_MISMATCH,
                "joint_names of the supplied chunk",
                found=list(chunk.joint_names),
                expected=list(robot.joint_names),
            )
        shape = np.shape(chunk.actions)
        if len(shape) != 2 or shape[0] < 1 or shape[1] != len(robot.joints):
            raise mismatch(
                ErrorCode.TENSOR_SHAPE_MISMATCH,
                "actions of the supplied chunk",
                found=f"shape {shape}",
                expected=f"(horizon, {len(robot.joints)})",
            )
        if not np.isfinite(chunk.actions).all():
            raise mismatch(
                ErrorCode.TENSOR_NOT_FINITE,
                "actions of the supplied chunk",
                found="NaN or infinity among them",
                expected="finite metres or radians",
            )
        for joint, column in zip(robot.joints, np.transpose(chunk.actions), strict=True):
            low = -np.inf if joint.min_position is None else joint.min_position
            high = np.inf if joint.max_position is None else joint.max_position
            if column.min() < low - SLACK or column.max() > high + SLACK:
                raise mismatch(
                    ErrorCode.NO_REACHABLE_CANDIDATE,
                    f"actions of the supplied chunk for {joint.name}",
                    found=f"{column.min():g} to {column.max():g}",
                    expected=f"{low:g} to {high:g} {'m' if joint.type == 'prismatic' else 'rad'}",
                )
        if chunk.stamp <= 0 or chunk.stamp - now > seconds_to_ns(FUTURE_TOLERANCE):
            raise mismatch(
                ErrorCode.STAMP_INVALID,
                "stamp of the supplied chunk",
                found=f"{(chunk.stamp - now) / NANOSECONDS:.3f} s ahead" if chunk.stamp else "0",
                expected=f"a time at most {FUTURE_TOLERANCE:g} s ahead of now",
            )
        if self._too_old(chunk, now):
            raise mismatch(
                ErrorCode.CANDIDATE_STALE,
                "age of the supplied chunk",
                found=f"{(now - chunk.stamp) / NANOSECONDS:.3f} s",
                expected=f"at most {self._max_age:g} s",
            )
        self._held = chunk

    def _too_old(self, chunk: ActionChunk, now: int) -> bool:
        return now - chunk.stamp > seconds_to_ns(self._max_age)

    def offered(self, now: int, horizon: int, step: float) -> npt.NDArray[np.float32] | None:
        """The actions (H, J) to offer beside candidates of ``horizon`` actions, ``step`` seconds
        apart; None when there is no chunk or it has become too old.

        :raises WorldForgeError: ``STEP_MISMATCH`` or ``HORIZON_INVALID``; the chunk is given up.
        """
        self._offered = None
        chunk = self._held
        if chunk is None or self._too_old(chunk, now):
            self._held = None
            return None
        if seconds_to_ns(chunk.step) != seconds_to_ns(step):
            self._held = None
            raise mismatch(
                ErrorCode.STEP_MISMATCH,
                "step of the supplied chunk",
                found=f"{chunk.step:g} s",
                expected=f"{step:g} s, that of the other candidates",
            )
        if len(chunk.actions) != horizon:
            self._held = None
            raise mismatch(
                ErrorCode.HORIZON_INVALID,
                "actions of the supplied chunk",
                found=len(chunk.actions),
                expected=f"{horizon}, as many as the other candidates have",
            )
        self._offered = chunk
        return chunk.actions.astype(np.float32)

    def chosen(self) -> None:
        """The chunk offered last was chosen: it is not offered again, its first action being
        over.
        """
        if self._held is self._offered:
            self._held = None
        self._offered = None
