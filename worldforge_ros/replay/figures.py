"""Figures of a report as people read them."""

from __future__ import annotations

from typing import Any

from worldforge_ros.replay.summary import Headline


def text(value: float | None, unit: str = "", digits: int = 3) -> str:
    """``value`` with so many significant digits and its unit; ``-`` when it was not measured. A
    share with the unit ``%`` is shown in per cent.
    """
    if value is None:
        return "-"
    if unit == "%":
        return f"{100.0 * value:.1f} %"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"
    if "e" in shown and 1e-4 < abs(value) < 1e7:
        shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4f}"
    return f"{shown} {unit}".rstrip()


def headline(item: Headline, value: float | None) -> str:
    """A headline figure with its unit."""
    return text(value, item.unit)


def between(value: float, low: float, high: float, unit: str) -> str:
    """A figure with the ends of its interval; the unit stands where it is needed only."""
    bare = unit if unit == "%" else ""
    return f"{text(value, bare)} ({text(low, bare)} to {text(high, bare)})"


def counted(counts: dict[str, Any]) -> str:
    """Counts by code in one line."""
    return ", ".join(f"{code} {count}" for code, count in counts.items()) or "none"
