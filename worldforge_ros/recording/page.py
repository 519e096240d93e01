"""What self-contained HTML pages about recorded runs share: style, plots, tables. No script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 760, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 30

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f8fa; --text: #1a2029;
  --faint: #5d6877; --rule: #d8dee6; --accent: #c8143c; --good: #1c8a4b; --candidate: #e8912d;
  --model: #3567c7; --ros: #9db4d8; }
@media (prefers-color-scheme: dark) { :root { --page: #11161d; --card: #1a212b; --text: #e6eaf0;
  --faint: #94a0b0; --rule: #2d3642; --accent: #ff5c7c; --good: #4bd08a; --candidate: #f0a040;
  --model: #6f9cf0; --ros: #3d5278; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 860px; padding: 40px 24px 80px; background: var(--page);
  color: var(--text); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 44px 0 8px; }
p { margin: 0 0 12px; color: var(--faint); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px;
  margin: 24px 0; }
.card { background: var(--card); border-radius: 8px; padding: 12px 16px; }
.card b { display: block; font-size: 26px; font-weight: 600; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.card span { color: var(--faint); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--rule); }
th { font-weight: 500; color: var(--faint); font-size: 13px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.bar { width: 34%; padding-right: 0; }
td.hash { text-align: left; font: 13px ui-monospace, monospace; word-break: break-all; }
.track { display: flex; height: 12px; border-radius: 3px; overflow: hidden; }
.legend { font-size: 13px; color: var(--faint); margin: 6px 0 0; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin: 0 5px 0 14px; }
.legend i:first-child { margin-left: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif; }
.axis { stroke: var(--rule); }
.line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.dot { fill: var(--accent); }
"""


def page(title: str, parts: Iterable[str], style: str = "") -> str:
    """A whole document; ``title`` is plain text, ``parts`` and ``style`` (beside the shared one)
    are markup."""
    return "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>",
            *(part for part in parts if part),
            "</body></html>\n",
        ]
    )


def number(value: float | None, digits: int = 1) -> str:
    """``value`` with ``digits`` decimals; ``-`` when it is unknown."""
    return "-" if value is None else f"{value:.{digits}f}"


def cards(items: Iterable[tuple[str, str]]) -> str:
    """Headline figures as ``(figure, caption)``, both markup."""
    body = "".join(f"<div class='card'><b>{b}</b><span>{s}</span></div>" for b, s in items)
    return f"<div class='cards'>{body}</div>"


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(next(m * power for m in (1, 2, 5, 10) if m * power >= rough))
    first = int(np.ceil(low / step - 1e-9))
    last = int(np.floor(high / step + 1e-9))
    return [round(index * step, 10) for index in range(first, last + 1)]


def svg(body: str, title: str, height: int = HEIGHT, width: int = WIDTH) -> str:
    """A picture of ``body`` (markup), read out as ``title`` (plain text)."""
    return (
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{escape(title)}'>{body}</svg>"
    )


class Axes:
    """A plot with ``start`` to ``end`` from left to right and ``low`` to ``high`` upwards.

    ``x_title`` and ``y_title`` name the axes with their units; a title takes ``ROOM`` pixels.
    """

    ROOM = 18

    def __init__(
        self,
        end: float,
        low: float,
        high: float,
        *,
        start: float = 0.0,
        width: int = WIDTH,
        height: int = HEIGHT,
        x_title: str = "",
        y_title: str = "",
    ) -> None:
        self.start = start
        self.end = max(end, start + 1e-9)
        self.low = low
        self.high = high if high > low else low + 1.0
        self.width, self.height = width, height
        self.x_title, self.y_title = x_title, y_title
        self.left, self.right = _LEFT, width - _RIGHT
        self.top = _TOP + (self.ROOM if y_title else 0)
        self.bottom = height - _BOTTOM - (self.ROOM if x_title else 0)

    def x(self, value: float) -> float:
        """Pixel of ``value``; one beyond an end lies on it."""
        share = min(max((value - self.start) / (self.end - self.start), 0.0), 1.0)
        return round(self.left + share * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Pixel of ``value``."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.bottom - share * (self.bottom - self.top), 1)

    def frame(
        self,
        values: Sequence[float],
        label: Callable[[float], str],
        x_values: Sequence[float] | None = None,
        x_label: Callable[[float], str] = "{:g} s".format,
    ) -> str:
        """Grid lines at ``values`` and labels at ``x_values``, round numbers when left out."""
        parts = []
        for value in values:
            y = self.y(value)
            parts.append(
                f"<line class='axis' x1='{self.left}' x2='{self.right}' y1='{y}' y2='{y}'/>"
                f"<text x='{self.left - 6}' y='{y + 4}' text-anchor='end'>{label(value)}</text>"
            )
        parts += [
            f"<text x='{self.x(value)}' y='{self.bottom + 20}' text-anchor='middle'>"
            f"{x_label(value)}</text>"
            for value in (ticks(self.start, self.end, 6) if x_values is None else x_values)
        ]
        if self.y_title:
            parts.append(f"<text x='4' y='14'>{escape(self.y_title)}</text>")
        if self.x_title:
            parts.append(
                f"<text x='{(self.left + self.right) / 2:g}' y='{self.height - 6}' "
                f"text-anchor='middle'>{escape(self.x_title)}</text>"
            )
        return "".join(parts)
