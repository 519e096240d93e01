"""Advice for every reason code, and the page that shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from worldforge_ros.safety import advice
from worldforge_ros.safety.reasons import ReasonCode

PAGE = Path(__file__).resolve().parent.parent / "docs/safety.md"


def test_every_code_has_three_sentences() -> None:
    assert set(advice.ADVICE) == set(ReasonCode)
    for code, entry in advice.ADVICE.items():
        for text in (entry.meaning, entry.cause, entry.action):
            assert re.fullmatch(r"[^|\n]{8,}\.", text), f"{code}: {text!r}"


def test_the_page_shows_the_table_that_the_code_has() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == advice.with_table(page), "run python scripts/reference.py reasons"


def test_only_the_table_is_rewritten() -> None:
    page = "before\n\n| Code | Meaning |\n|---|---|\n| `OLD` | x |\n\nafter | this |\n"
    assert advice.with_table(page) == f"before\n\n{advice.table()}\n\nafter | this |\n"
    with pytest.raises(ValueError, match="expected one"):
        advice.with_table("no table")


def test_a_code_of_another_release_has_no_advice() -> None:
    assert advice.advice_for("POSITION_LIMIT") is advice.ADVICE[ReasonCode.POSITION_LIMIT]
    assert advice.advice_for("FROM_THE_FUTURE") is None
