"""The report for people: one page that fetches nothing, text for a terminal, two runs compared."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from replay_documents import (
    PROVENANCE,
    episode,
    failed_episode,
    several,
    without_cycles,
    without_models,
)

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.evaluation.statistics import bootstrap_mean
from worldforge_ros.replay.compare import compare, compare_markdown, write_compare_html
from worldforge_ros.replay.html import write_html
from worldforge_ros.replay.markdown import markdown
from worldforge_ros.replay.summary import OPEN_LOOP, summarise

SECTIONS = [
    "Bag health",
    "Synchronisation",
    "Policy",
    "Scores",
    "Gate",
    "Latency of the live run, ms",
    "Reproduction",
    "Bags",
    "Provenance",
]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class _Page(HTMLParser):
    """Whether tags close in order, what they say, and what they would fetch."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.said: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "data")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.said.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def _write(folder: Path, documents: list[dict[str, Any]], **about: Any) -> str:
    report = summarise(documents, {**PROVENANCE, **about})
    return write_html(folder / "report.html", report, documents).read_text(encoding="utf-8")


def test_the_page_has_every_section_and_fetches_nothing(tmp_path: Path) -> None:
    text = _write(tmp_path, several(), settings={"candidates": 32})
    found = _Page(text)
    assert found.headings == SECTIONS
    assert not found.tags & {"script", "link", "iframe", "img", "object", "embed"}
    assert found.fetched == []
    assert "url(" not in text
    assert "@import" not in text
    said = "".join(found.said)
    assert OPEN_LOOP.replace("`", "") in said
    assert "1 of 6 bags could not be replayed" in said
    assert "jerk of elbow at step 3 is 61.2 rad/s3" in said
    assert "TOO_MANY_REJECTIONS" in said
    assert "DEADLINE" in said
    assert '"candidates": 32' in said
    assert PROVENANCE["checkpoints"]["policy"] in said
    assert text.count("<polyline") == 5
    assert text.count("class='point'") == 4 * 118


@pytest.mark.parametrize(
    "documents",
    [
        [without_cycles("a")],
        [without_models("a")],
        [episode("a")],
        [episode("a", still=2), failed_episode("b")],
        [without_cycles("a"), failed_episode("b")],
        [failed_episode("a")],
    ],
)
def test_the_page_copes_with_what_is_not_there(
    tmp_path: Path, documents: list[dict[str, Any]]
) -> None:
    text = _write(tmp_path, documents)
    shown = [heading.removesuffix(", ms") for heading in _Page(text).headings]
    assert shown == [heading.removesuffix(", ms") for heading in SECTIONS]
    assert "nan" not in re.sub(r"[a-z_]*nan[a-z]+", "", text.lower())
    lines = markdown(summarise(documents, {}))
    assert OPEN_LOOP in lines


def test_a_step_that_was_never_compared_is_left_out(tmp_path: Path) -> None:
    document = episode("a")
    for part in document["policy"]["errors"].values():
        part["count"][-1] = 0
        part["sum_abs"][-1] = part["sum_sq"][-1] = [0.0] * 4
    text = _write(tmp_path, [document])
    points = re.search(r"class='curve p0' points='([^']*)'", text)
    assert points
    assert len(points[1].split()) == 15


def test_many_candidates_bags_and_stops_are_drawn_in_bounds_and_said(tmp_path: Path) -> None:
    documents = [episode(f"e{i:02d}", i, duration=20.0) for i in range(42)]
    for document in documents:
        document["scores"]["candidates"] = 1024
    documents[0]["gate"]["stop_count"] = 9 + len(documents[0]["gate"]["stops"])
    documents[1]["reproduction"]["same"] -= 3
    pairs = sum(len(document["scores"]["pairs"]["realised"]) for document in documents)
    documents[2]["scores"]["pairs"] = {"recorded_cost": [0.1] * 3000, "realised": [0.2] * 3000}
    pairs += 3000 - 38
    text = _write(tmp_path, documents)
    said = "".join(_Page(text).said)
    assert "='-" not in text
    # The last of 1025 ranks, 21 to a bar.
    assert text.count("<rect class='bar'") == 20 + 49
    assert "the first 40 of 42" in said
    assert "37 more bags" in said
    assert "e00: 9 more" in said
    assert "42 of 45 others are listed" in said
    drawn = text.count("class='point'")
    assert drawn <= 2000
    assert f"{drawn} of {pairs} are drawn" in said


def test_equal_costs_have_no_picture(tmp_path: Path) -> None:
    document = episode("a")
    document["scores"]["pairs"] = {"recorded_cost": [0.5] * 9, "realised": [0.25] * 9}
    text = _write(tmp_path, [document])
    assert "class='point'" not in text
    assert "or constant costs" in text


def test_names_are_escaped(tmp_path: Path) -> None:
    document = episode("<script>alert(1)</script>")
    hostile = "</style><img src=x onerror=alert(1)>"
    document["health"]["topics"][0]["topic"] = hostile
    document["gate"]["stops"][:] = [{"t_s": 1.0, "code": hostile, "message": "'\"&<b>"}]
    document["gate"]["codes"] = {hostile: 3}
    document["gate"]["expert"]["examples"][0]["message"] = hostile
    document["policy"]["joints"][0] = hostile
    document["reproduction"]["differences"][0]["cause"] = hostile
    document["health"]["problems"][0]["message"] = hostile
    documents = [document, episode("b")]
    documents[1]["policy"]["joints"][0] = hostile
    text = _write(tmp_path, documents, planner=hostile, settings={hostile: hostile})
    found = _Page(text)
    assert not found.tags & {"script", "img"}
    assert hostile in "".join(found.said)
    report = summarise(documents, PROVENANCE)
    compared = compare([(hostile, report), ("b", report)])
    page = write_compare_html(tmp_path / "c.html", compared).read_text(encoding="utf-8")
    assert "img" not in _Page(page).tags


def test_the_same_figures_give_the_same_page(tmp_path: Path) -> None:
    documents = several()
    assert _write(tmp_path, documents) == _write(tmp_path, documents[::-1])


def test_markdown_reads_as_plain_text() -> None:
    text = markdown(summarise(several(), PROVENANCE))
    assert "<" not in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        rows = table.splitlines()
        assert len({len(row) for row in rows}) == 1
        assert len({row.count("|") for row in rows}) == 1
    assert "| recorded actions that the gate rejects    |          1.7 %" in text
    assert "- truncated: BAG_INVALID" in text


def _figure(document: dict[str, Any], path: str) -> dict[str, Any]:
    return next(row for row in document["figures"] if row["path"] == path)


def test_runs_over_the_same_bags_are_paired() -> None:
    first = summarise(several(), PROVENANCE)
    second = summarise(several(1.5), PROVENANCE)
    document = compare([("a", first), ("b", second)])
    row = _figure(document, "policy.error_normalised")
    gains = [
        two["figures"]["policy.error_normalised"] - one["figures"]["policy.error_normalised"]
        for one, two in zip(first["episodes"], second["episodes"], strict=True)
        if not one["failed"]
    ]
    # Paired by hash: in another order than the names, so the draws differ but not the mean.
    interval = bootstrap_mean(gains)
    assert row["paired"] is True
    assert row["bags"] == 5
    assert row["difference"] == pytest.approx(interval.mean)
    assert row["ci_low"] == pytest.approx(interval.low, abs=0.02)
    assert row["ci_high"] == pytest.approx(interval.high, abs=0.02)
    assert row["values"] == [r["policy"]["error_normalised"] for r in (first, second)]
    assert _figure(document, "gate.reject_rate")["difference"] == 0.0
    assert document["warnings"] == []
    text = compare_markdown(document)
    assert "worse" in text
    assert "better" not in text
    assert "5 bags, paired" in text


def test_runs_over_other_bags_are_not_paired_and_warned_of() -> None:
    first = summarise([episode(f"a{i}", i) for i in range(3)], PROVENANCE)
    others = [episode(f"b{i}", i) for i in range(4)]
    for document in others:
        document["scores"]["objective"] = "other"
    second = summarise(others, {**PROVENANCE, "embodiment": {"name": "x", "sha256": "0"}})
    document = compare([("a", first), ("b", second)])
    row = _figure(document, "gate.reject_rate")
    means = [
        sum(r["figures"]["gate.reject_rate"] for r in report["episodes"]) / len(report["episodes"])
        for report in (first, second)
    ]
    assert row["paired"] is False
    assert row["bags"] == 7
    assert row["difference"] == pytest.approx(means[1] - means[0])
    assert row["ci_low"] <= row["difference"] <= row["ci_high"]
    said = " ".join(document["warnings"])
    assert "0 bags in common, of 3 and 4" in said
    assert "embodiment" in said
    assert "objectives" in said
    assert "7 bags, not paired" in compare_markdown(document)


def test_single_bags_have_figures_but_no_interval() -> None:
    report = summarise([episode("a")], PROVENANCE)
    row = _figure(compare([("a", report), ("b", report)]), "gate.reject_rate")
    assert row["values"][0] == row["values"][1] is not None
    assert row["paired"] is None
    assert row["ci_low"] is None


def test_a_report_of_another_schema_is_not_compared() -> None:
    report = summarise([episode("a")], PROVENANCE)
    with pytest.raises(WorldForgeError, match="schema of report b") as caught:
        compare([("a", report), ("b", {**report, "schema": "else/2"})])
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_page_without_a_word_on_its_console(tmp_path: Path) -> None:
    _write(tmp_path, several())
    picture = tmp_path / "report.png"
    ended = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--window-size=900,6000",
            f"--screenshot={picture}",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert [line for line in ended.stderr.splitlines() if "CONSOLE" in line] == []
    assert picture.stat().st_size > 50_000
