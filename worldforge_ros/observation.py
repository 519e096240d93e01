"""Observations: what the robot sees and feels at one moment, aligned in time.

Stamps are integer nanoseconds of ROS time; ages and periods in the public functions are seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch

FloatArray = npt.NDArray[np.float64]
ImageArray = npt.NDArray[np.uint8]

NANOSECONDS = 1_000_000_000


def seconds_to_ns(seconds: float) -> int:
    """Round seconds to whole nanoseconds."""
    return round(seconds * NANOSECONDS)


@dataclass(frozen=True)
class Observation:
    """One moment: pictures (height, width, 3) uint8 RGB by camera name, joints in contract order.

    ``position`` (J,) in m or rad and ``velocity`` (J,) in m/s or rad/s are the state as of
    ``stamp``, the capture time of the newest picture in nanoseconds. ``task`` is the instruction
    for policies that follow one; empty: the embodiment's.
    """

    stamp: int
    images: Mapping[str, ImageArray]
    position: FloatArray
    velocity: FloatArray
    task: str = ""


def check_image(
    image: ImageArray, camera: str, embodiment: Embodiment, what: str = "image of"
) -> None:
    """Refuse a picture that is not what the embodiment says of ``camera``.

    :param what: the picture in the message, before the camera's name.
    :raises WorldForgeError: ``CAMERA_MISSING`` for an unknown camera, ``IMAGE_SIZE_MISMATCH``
        otherwise.
    """
    spec = embodiment.cameras.get(camera)
    if spec is None:
        raise mismatch(
            ErrorCode.CAMERA_MISSING,
            "camera",
            found=f"'{camera}'",
            expected=f"one of {', '.join(embodiment.cameras)} of embodiment {embodiment.name}",
        )
    expected = (spec.height, spec.width, 3)
    if image.shape != expected or image.dtype != np.uint8:
        raise mismatch(
            ErrorCode.IMAGE_SIZE_MISMATCH,
            f"{what} camera {camera}",
            found=f"{image.shape} {image.dtype}",
            expected=f"{expected} uint8 (height, width, RGB)",
        )


def check_goal(goal: ImageArray, camera: str, embodiment: Embodiment) -> None:
    """The same for the picture of the state to bring about.

    :raises WorldForgeError: as :func:`check_image`.
    """
    check_image(goal, camera, embodiment, "goal image for")


def order_joint_state(
    names: Sequence[str],
    position: Sequence[float],
    velocity: Sequence[float],
    embodiment: Embodiment,
) -> tuple[FloatArray, FloatArray]:
    """Pick the contract's joints by name, in the contract's order; other joints are left aside.

    :returns: position and velocity, each (J,) float64.
    :raises WorldForgeError: ``JOINT_NAMES_MISMATCH`` for a missing or doubled joint,
        ``TENSOR_SHAPE_MISMATCH`` for a wrong count, ``TENSOR_NOT_FINITE`` for NaN or infinity.
    """
    index = {name: i for i, name in enumerate(names)}
    missing = [name for name in embodiment.joint_names if name not in index]
    if missing or len(index) != len(names):
        raise mismatch(
            ErrorCode.JOINT_NAMES_MISMATCH,
            "joint_states.name",
            found=list(names),
            expected=f"each of {list(embodiment.joint_names)} once",
        )
    columns = [index[name] for name in embodiment.joint_names]
    ordered = []
    for field, values in (("position", position), ("velocity", velocity)):
        if len(values) != len(names):
            raise mismatch(
                ErrorCode.TENSOR_SHAPE_MISMATCH,
                f"joint_states.{field}",
                found=f"{len(values)} values",
                expected=f"{len(names)}, one for each name",
            )
        array = np.asarray(values, dtype=np.float64)[columns]
        if not np.isfinite(array).all():
            raise mismatch(
                ErrorCode.TENSOR_NOT_FINITE,
                f"joint_states.{field}",
                found=array.tolist(),
                expected="finite numbers",
            )
        ordered.append(array)
    return ordered[0], ordered[1]


class ObservationAligner:
    """Turns sensor messages into observations: the newest pictures and the joint state as of their
    stamp.

    Bounded: it keeps one picture a camera and ``queue`` joint states. Every refusal is an error
    with a code.
    """

    def __init__(self, embodiment: Embodiment, *, queue: int = 256) -> None:
        self._embodiment = embodiment
        self._images: dict[str, tuple[int, ImageArray]] = {}
        self._states: deque[tuple[int, FloatArray, FloatArray]] = deque(maxlen=queue)
        self._last_stamp = 0

    def reset(self) -> None:
        """Forget everything, as after a clock jump or a simulator reset."""
        self._images.clear()
        self._states.clear()
        self._last_stamp = 0

    def add_image(self, camera: str, stamp: int, image: ImageArray) -> None:
        """Keep ``image`` as the newest of ``camera``.

        :raises WorldForgeError: wrong camera or size, or ``OBSERVATION_OUT_OF_ORDER`` for a stamp
            that is not newer than the one held.
        """
        check_image(image, camera, self._embodiment)
        _check_stamp(stamp, f"stamp of camera {camera}")
        self._notice_time_going_back(stamp)
        held = self._images.get(camera)
        if held is not None and stamp <= held[0]:
            raise mismatch(
                ErrorCode.OBSERVATION_OUT_OF_ORDER,
                f"stamp of camera {camera}",
                found=f"{stamp} ns",
                expected=f"later than the previous {held[0]} ns",
            )
        self._images[camera] = (stamp, image)

    def add_joint_state(
        self,
        stamp: int,
        names: Sequence[str],
        position: Sequence[float],
        velocity: Sequence[float],
    ) -> None:
        """Keep a joint state.

        :raises WorldForgeError: wrong names, counts or non-finite values, or
            ``OBSERVATION_OUT_OF_ORDER`` for a stamp older than the newest.
        """
        _check_stamp(stamp, "stamp of joint_states")
        self._notice_time_going_back(stamp)
        ordered = order_joint_state(names, position, velocity, self._embodiment)
        if self._states and stamp < self._states[-1][0]:
            raise mismatch(
                ErrorCode.OBSERVATION_OUT_OF_ORDER,
                "stamp of joint_states",
                found=f"{stamp} ns",
                expected=f"not before the previous {self._states[-1][0]} ns",
            )
        self._states.append((stamp, *ordered))

    def _notice_time_going_back(self, stamp: int) -> None:
        newest = max(
            (held[0] for held in (*self._images.values(), *list(self._states)[-1:])), default=0
        )
        if newest - stamp > seconds_to_ns(self._embodiment.observation.max_age):
            self.reset()

    def missing(self) -> tuple[str, ...]:
        """Sources that never delivered: camera names, and ``joint_states``."""
        absent = [name for name in self._embodiment.cameras if name not in self._images]
        return (*absent, *(() if self._states else ("joint_states",)))

    def observe(self, now: int) -> Observation | None:
        """The newest observation at time ``now`` (ns), or None when it was returned before.

        :raises WorldForgeError: ``CAMERA_MISSING`` or ``JOINT_STATE_MISSING`` for a source that
            never delivered, ``CAMERA_STALE`` or ``JOINT_STATE_STALE`` for one that is older than
            ``max_age`` or, for a second camera or the joint state, further from the stamp than
            ``tolerance``.
        """
        spec = self._embodiment.observation
        for name, camera in self._embodiment.cameras.items():
            if name not in self._images:
                raise mismatch(
                    ErrorCode.CAMERA_MISSING,
                    f"camera {name}",
                    found=f"silent on topic {camera.topic}",
                    expected="a picture",
                )
        if not self._states:
            raise mismatch(
                ErrorCode.JOINT_STATE_MISSING,
                "joint state",
                found=f"silent on topic {spec.joint_state_topic}",
                expected="a message",
            )
        stamp = max(held for held, _ in self._images.values())
        if stamp == self._last_stamp:
            return None
        max_age, tolerance = seconds_to_ns(spec.max_age), seconds_to_ns(spec.tolerance)
        for name, (held, _) in self._images.items():
            _check_age(ErrorCode.CAMERA_STALE, f"picture of camera {name}", now - held, max_age)
            _check_apart(
                ErrorCode.CAMERA_STALE, f"picture of camera {name}", stamp - held, tolerance
            )
        held, position, velocity = min(self._states, key=lambda state: abs(state[0] - stamp))
        _check_age(ErrorCode.JOINT_STATE_STALE, "joint state", now - held, max_age)
        _check_apart(ErrorCode.JOINT_STATE_STALE, "joint state", abs(stamp - held), tolerance)
        self._last_stamp = stamp
        images = {name: image for name, (_, image) in self._images.items()}
        return Observation(stamp=stamp, images=images, position=position, velocity=velocity)


class ObservationIntake:
    """Sensor messages in, observations out: one for each moment that has a picture of every camera
    and a joint state.

    What a live node does and what the replay of a recording does; ``now`` is the time at which a
    message arrived, in ns of the clock of the stamps.
    """

    def __init__(self, embodiment: Embodiment) -> None:
        self._aligner = ObservationAligner(embodiment)
        self.waiting: WorldForgeError | None = None
        """Why the newest picture has not become an observation yet; None when it has."""

    def image(self, camera: str, stamp: int, image: ImageArray, now: int) -> Observation | None:
        """Take a picture; returns the observation that it completes.

        :raises WorldForgeError: as :meth:`ObservationAligner.add_image`.
        """
        self._aligner.add_image(camera, stamp, image)
        return self._observe(now)

    def joint_state(
        self,
        stamp: int,
        names: Sequence[str],
        position: Sequence[float],
        velocity: Sequence[float],
        now: int,
    ) -> Observation | None:
        """Take a joint state; returns the observation of a picture that has waited for it.

        :raises WorldForgeError: as :meth:`ObservationAligner.add_joint_state`.
        """
        self._aligner.add_joint_state(stamp, names, position, velocity)
        # A picture may have overtaken the joint state of its moment.
        return None if self.waiting is None else self._observe(now)

    def check(self, now: int) -> None:
        """Refuse sensors that are silent at ``now``.

        :raises WorldForgeError: as :meth:`ObservationAligner.observe`, or why a picture waits.
        """
        if self.waiting is not None:
            raise self.waiting
        self._aligner.observe(now)

    def _observe(self, now: int) -> Observation | None:
        try:
            observation = self._aligner.observe(now)
        except WorldForgeError as error:
            # Another camera's frame or the joint state of the same moment may be on its way.
            self.waiting = error
            return None
        if observation is not None:
            self.waiting = None
        return observation


class ObservationHistory:
    """The last observations, for models that look back; bounded by ``duration`` seconds."""

    def __init__(self, duration: float) -> None:
        self._duration = seconds_to_ns(duration)
        self._items: deque[Observation] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def clear(self) -> None:
        """Forget everything, as at a reset."""
        self._items.clear()

    def add(self, observation: Observation) -> None:
        """Append an observation; a stamp before the newest one means time went back, and starts
        anew.
        """
        if self._items and observation.stamp < self._items[-1].stamp:
            self._items.clear()
        elif self._items and observation.stamp == self._items[-1].stamp:
            return
        self._items.append(observation)
        while observation.stamp - self._items[0].stamp > self._duration:
            self._items.popleft()

    def newest(self) -> Observation:
        """The newest observation.

        :raises WorldForgeError: ``OBSERVATION_MISSING`` when there is none.
        """
        if not self._items:
            raise mismatch(
                ErrorCode.OBSERVATION_MISSING, "observation", found="none yet", expected="one"
            )
        return self._items[-1]

    def stamps(self) -> tuple[int, ...]:
        """Stamps of the observations held, oldest first, in ns."""
        return tuple(item.stamp for item in self._items)

    def check_age(self, now: int, max_age: float) -> None:
        """Refuse a newest observation that is older than ``max_age`` seconds at ``now`` (ns).

        :raises WorldForgeError: ``OBSERVATION_MISSING`` or ``OBSERVATION_STALE``.
        """
        age = now - self.newest().stamp
        _check_age(ErrorCode.OBSERVATION_STALE, "observation", age, seconds_to_ns(max_age))

    def window(self, count: int, period: float, tolerance: float) -> list[Observation]:
        """``count`` different observations, ``period`` seconds apart, oldest first, ending at the
        newest.

        :param tolerance: seconds that a frame may lie off its due time; at most half a period
            counts.
        :raises WorldForgeError: ``OBSERVATION_MISSING`` when empty, ``HISTORY_TOO_SHORT`` when a
            frame is not there. Nothing is repeated to fill the window.
        """
        newest = self.newest()
        allowed = min(seconds_to_ns(tolerance), seconds_to_ns(period) // 2)
        window = [newest]
        for back in range(1, count):
            due = newest.stamp - back * seconds_to_ns(period)
            nearest = min(self._items, key=lambda item: abs(item.stamp - due))
            if abs(nearest.stamp - due) > allowed or nearest.stamp >= window[-1].stamp:
                raise mismatch(
                    ErrorCode.HISTORY_TOO_SHORT,
                    "history",
                    found=f"no frame {back * period:.3f} s before the newest of {len(self)}",
                    expected=f"{count} different frames {period:.3f} s apart",
                )
            window.append(nearest)
        return window[::-1]


def blank_window(embodiment: Embodiment, count: int, period: float) -> list[Observation]:
    """Observations to warm a model up with: black pictures, joints in the middle of their range."""
    middle = [
        0.5 * (joint.min_position + joint.max_position)
        if joint.min_position is not None and joint.max_position is not None
        else 0.0
        for joint in embodiment.joints
    ]
    return [
        Observation(
            stamp=seconds_to_ns(1.0 + index * period),
            images={
                name: np.zeros((camera.height, camera.width, 3), np.uint8)
                for name, camera in embodiment.cameras.items()
            },
            position=np.asarray(middle, dtype=np.float64),
            velocity=np.zeros(len(middle)),
        )
        for index in range(count)
    ]


def check_window(
    history: Sequence[Observation], count: int, period: float, tolerance: float
) -> None:
    """Refuse a caller's history that is not ``count`` frames, ``period`` seconds apart, oldest
    first.

    :raises WorldForgeError: ``HISTORY_TOO_SHORT``.
    """
    stamps = [item.stamp for item in history]
    allowed = min(seconds_to_ns(tolerance), seconds_to_ns(period) // 2)
    due = seconds_to_ns(period)
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    if len(stamps) != count or any(abs(gap - due) > allowed for gap in gaps):
        raise mismatch(
            ErrorCode.HISTORY_TOO_SHORT,
            "history",
            found=f"{len(stamps)} frames, {[round(gap / NANOSECONDS, 3) for gap in gaps]} s apart",
            expected=f"{count} frames, {period:.3f} s apart, oldest first",
        )


def _check_stamp(stamp: int, field: str) -> None:
    if stamp <= 0:
        raise mismatch(
            ErrorCode.STAMP_INVALID, field, found=f"{stamp} ns", expected="the capture time"
        )


def _check_age(code: ErrorCode, field: str, age: int, limit: int) -> None:
    if age > limit:
        raise mismatch(
            code,
            field,
            found=f"{age / NANOSECONDS:.3f} s old",
            expected=f"at most {limit / NANOSECONDS:.3f} s",
        )


def _check_apart(code: ErrorCode, field: str, apart: int, limit: int) -> None:
    if apart > limit:
        raise mismatch(
            code,
            field,
            found=f"{apart / NANOSECONDS:.3f} s from the observation's stamp",
            expected=f"at most {limit / NANOSECONDS:.3f} s",
        )
