"""What a person sees of the gate: one status, in words, as rich objects and as JSON.

Everything a gate sends is shown as text, never as markup or terminal codes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from worldforge_ros.safety.advice import advice_for

if TYPE_CHECKING:
    from rich.console import RenderableType

SILENT = 2.0
"""Seconds without a status after which a gate is lost: it speaks at least once a second."""
BEAT_LATE = 1.0
"""Seconds since a heartbeat that are shown in red: ten of them were due."""

WAITING = "WAITING"
LOST = "LOST"
STYLES = {
    "DISARMED": "bold white on blue",
    "ARMED": "bold black on green",
    "HOLDING": "bold black on yellow",
    "STOPPED": "bold white on red",
    LOST: "bold white on red",
    WAITING: "bold black on yellow",
}
VERDICTS = {"APPROVED": "green", "CLAMPED": "yellow", "REJECTED": "red"}
WHEN_LOST = (
    "Take the robot for uncontrolled: keep clear and stop it by its own means, then see whether "
    "the gate's process lives."
)
WHEN_WAITING = (
    "Start the gate, or give this program the gate's ROS_DOMAIN_ID and namespace; "
    "`worldforge demo` prints its domain."
)
WHEN_SEVERAL = "Stop all gates but one: what is shown is of whichever spoke last."


@dataclass(frozen=True)
class GateView:
    """One status; ``stamp`` is ROS time in s, latencies are in s.

    ``reasons`` are codes and sentences of the last verdict, ``rejected`` counts by code,
    ``capture_to_command`` is None before the first approved chunk.
    """

    stamp: float
    mode: str
    reason: str
    epoch: int
    verdict: str
    verdict_sequence: int
    reasons: tuple[tuple[str, str], ...]
    counters: Mapping[str, int]
    rejected: Mapping[str, int]
    validation_latency: float
    capture_to_command: float | None


@dataclass(frozen=True)
class Watch:
    """What is known at one moment.

    :param topic: where statuses come from, in full.
    :param view: the last status, None before the first.
    :param age: seconds since it arrived.
    :param publishers: gates that publish there.
    :param heartbeats: seconds since each node was heard.
    """

    topic: str
    view: GateView | None = None
    age: float = math.inf
    publishers: int = 0
    heartbeats: Mapping[str, float] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """The gate's mode, ``WAITING`` before the first status, ``LOST`` once it fell silent."""
        if self.view is None:
            return WAITING
        return LOST if self.age > SILENT else self.view.mode

    @property
    def key(self) -> object:
        """Differs between two moments where there is something new to tell."""
        view = self.view
        return self.state, self.publishers > 1, view and replace(view, stamp=0.0)

    @property
    def actions(self) -> dict[str, str]:
        """What to do about each code of the mode's reason and of the last verdict."""
        if self.view is None:
            return {WAITING: WHEN_WAITING}
        codes = [code for code, _ in self.view.reasons]
        found = re.match(r"([A-Z][A-Z_]+): ", self.view.reason)
        if found:
            codes.insert(0, found[1])
        actions = {LOST: WHEN_LOST} if self.state == LOST else {}
        return actions | {code: _action(code) for code in codes}

    def as_json(self) -> dict[str, Any]:
        """Everything, for a program; no key ever lacks."""
        view: dict[str, Any] | None = None
        if self.view is not None:
            view = asdict(self.view)
            view["reasons"] = [
                {"code": code, "message": message, "action": _action(code)}
                for code, message in self.view.reasons
            ]
        return {
            "state": self.state,
            "lost": self.state == LOST,
            "topic": self.topic,
            "age": None if self.view is None else round(self.age, 3),
            "publishers": self.publishers,
            "status": view,
            "actions": self.actions,
            "heartbeats": {name: round(age, 3) for name, age in self.heartbeats.items()},
        }

    def as_rich(self) -> RenderableType:
        """Everything, for a terminal."""
        from rich.console import Group

        parts = [self.as_rich_short()]
        if self.view is not None:
            parts += self._figures(self.view)
        parts.append(self._beats())
        return Group(*parts)

    def as_rich_short(self) -> RenderableType:
        """Mode, last verdict and what to do, without figures and heartbeats."""
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [self._headline()]
        if self.publishers > 1:
            parts.append(Text(f"{self.publishers} gates publish. {WHEN_SEVERAL}", "bold red"))
        if self.view is not None:
            parts += self._verdict(self.view)
        parts += self._advice()
        return Group(*parts)

    def _headline(self) -> RenderableType:
        from rich.text import Text

        line = Text()
        line.append(f" {plain(self.state)} ", STYLES.get(self.state, "bold"))
        if self.view is None:
            return line.append(f" no status on {self.topic} yet")
        silent = self.state == LOST
        if silent:
            publishers = "" if self.publishers else ", no publisher"
            line.append(f" nothing from the gate for {self.age:.1f} s{publishers}", "bold red")
            line.append(f"; it was {plain(self.view.mode)}:")
        line.append(f" {plain(self.view.reason)}")
        line.append(f"\nepoch {self.view.epoch}, status {self.age:.1f} s old", "dim")
        return line

    def _verdict(self, view: GateView) -> list[RenderableType]:
        from rich.text import Text

        if not view.verdict:
            return [Text("no chunk judged yet", "dim")]
        line = Text("last verdict: ")
        line.append(plain(view.verdict), f"bold {VERDICTS.get(view.verdict, 'red')}")
        line.append(f", chunk {view.verdict_sequence}")
        for code, message in view.reasons:
            line.append(f"\n  {plain(code)}", "bold")
            line.append(f": {plain(message)}")
        return [line]

    def _advice(self) -> list[RenderableType]:
        from rich.text import Text

        if not self.actions:
            return []
        line = Text("what to do:", "bold")
        for code, action in self.actions.items():
            line.append(f"\n  {plain(code)}: ", "bold")
            line.append(action, "not bold")
        return [line]

    def _figures(self, view: GateView) -> list[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        counters = ", ".join(f"{name} {count}" for name, count in view.counters.items())
        reached = view.capture_to_command
        parts: list[RenderableType] = [
            Text(f"counters: {counters}"),
            Text(
                f"validation {view.validation_latency * 1e3:.2f} ms, capture to command "
                + ("none yet" if reached is None else f"{reached * 1e3:.1f} ms")
            ),
        ]
        if view.rejected:
            rows = Table("rejected for", "times", box=None, padding=(0, 2, 0, 0))
            for code, count in sorted(view.rejected.items(), key=lambda item: -item[1]):
                rows.add_row(Text(plain(code)), str(count))
            parts.append(rows)
        return parts

    def _beats(self) -> RenderableType:
        from rich.text import Text

        line = Text("heartbeats: ")
        if not self.heartbeats:
            return line.append("none heard", "dim")
        for index, (name, age) in enumerate(sorted(self.heartbeats.items())):
            style = "bold red" if age > BEAT_LATE else "green"
            line.append(", " if index else "")
            line.append(f"{plain(name)} {age:.1f} s", style)
        return line


def plain(text: str) -> str:
    """``text`` with all that is no printable character, terminal codes first, made visible."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _action(code: str) -> str:
    advice = advice_for(code)
    if advice is None:
        return "Unknown here: the gate is of another release; look into its documentation."
    return advice.action
