"""A gate, a robot that stands where it is put, and a clock in the test's hands."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from worldforge_ros.embodiment import Embodiment, Joint, load_embodiment
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.safety.checks import Verdict
from worldforge_ros.safety.config import GateConfig
from worldforge_ros.safety.gate import SafetyGate, SetPoint
from worldforge_ros.safety.reasons import ReasonCode
from worldforge_ros.safety.workspace import Workspace

START = 1_000_000_000_000
STEP = 0.1
NAMES = ("pusher_x", "pusher_y")
HOME = (0.25, 0.25)


@cache
def pusht() -> Embodiment:
    return load_embodiment("pusht")


def robot(kind: str = "prismatic", **limits: float) -> Embodiment:
    """PushT's two joints, 0 to 0.512 m at 1 m/s and 20 m/s^2, with other ``limits``.

    With a ``kind`` of continuous the first joint turns without end.
    """
    common: dict[str, Any] = {
        "max_velocity": 1.0,
        "max_acceleration": 20.0,
        "max_deceleration": 20.0,
        "max_jerk": math.inf,
        **limits,
    }
    x = (None, None) if kind == "continuous" else (0.0, 0.512)
    joints = (
        Joint("pusher_x", kind, *x, **common),  # type: ignore[arg-type]
        Joint("pusher_y", "prismatic", 0.0, 0.512, **common),
    )
    return replace(pusht(), joints=joints)


class Rig:
    """ROS time advances with real time, ``jump`` seconds off; the robot moves only where a test
    moves it.
    """

    def __init__(
        self,
        config: GateConfig | None = None,
        embodiment: Embodiment | None = None,
        workspace: Workspace | None = None,
        position: tuple[float, float] = HOME,
    ) -> None:
        self.gate = SafetyGate(embodiment or pusht(), config, workspace)
        self.time = 0.0
        self.jump = 0.0
        self.position: tuple[float, ...] = position
        self.velocity: tuple[float, ...] = (0.0, 0.0)
        self.sequence = 0

    @property
    def ros(self) -> int:
        return START + round((self.time + self.jump) * 1e9)

    def sense(self) -> None:
        self.gate.update_joint_state(NAMES, self.position, self.velocity, self.ros, self.time)

    def tick(self) -> SetPoint | None:
        return self.gate.tick(self.ros, self.time)

    def advance(self, seconds: float, *, sensing: bool = True) -> SetPoint | None:
        """Tick every 10 ms; returns the last set-point."""
        point = None
        for _ in range(round(seconds * 100)):
            self.time = round(self.time + 0.01, 9)
            if sensing:
                self.sense()
            point = self.tick()
        return point

    def at(self, seconds: float) -> tuple[float, ...]:
        """The set-point once the clock shows ``seconds``."""
        point = self.advance(seconds - self.time)
        assert point is not None
        return tuple(point.position.tolist())

    def enable(self, on: bool = True) -> str:
        return self.gate.enable(on, self.ros, self.time).message

    def rearm(self) -> str:
        return self.gate.rearm(self.ros, self.time).message

    def armed(self) -> Rig:
        self.sense()
        outcome = self.gate.enable(True, self.ros, self.time)
        assert outcome.success, outcome
        return self

    def chunk(self, *, actions: Any = None, **changes: Any) -> ActionChunk:
        self.sequence += 1
        if actions is None:
            actions = np.tile(HOME, (5, 1))
        fields: dict[str, Any] = {
            "stamp": self.ros,
            "embodiment": "pusht",
            "joint_names": NAMES,
            "step": STEP,
            "actions": np.asarray(actions, dtype=np.float64),
            "source": "policy",
            "epoch": self.gate.epoch,
            "sequence": self.sequence,
            "observation_stamp": self.ros,
        }
        return ActionChunk(**{**fields, **changes})

    def judge(self, **changes: Any) -> Verdict:
        return self.gate.submit(self.chunk(**changes), self.ros, self.time)

    def submit(self, **changes: Any) -> set[ReasonCode]:
        """What a chunk violates, that is not mended."""
        verdict = self.judge(**changes)
        codes = {reason.code for reason in verdict.reasons}
        assert verdict.approved == (not codes)
        assert len(codes) == len(verdict.reasons), "a code is listed once"
        return codes


def xs(*positions: float, y: float = HOME[1]) -> list[tuple[float, float]]:
    """Set-points of the first joint; the second stays."""
    return [(position, y) for position in positions]


def ramp(count: int, step: float = 0.05) -> list[tuple[float, float]]:
    """Set-points from HOME along x, ``step`` metres apart."""
    return xs(*(HOME[0] + step * (k + 1) for k in range(count)))
