"""Summary, annotated picture and report of an episode."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from worldforge_ros.drawing.strokes import cost_strength
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.recording.figure import COVERAGE, REWARD, Figure, figure_of
from worldforge_ros.recording.gif import FRAME_PERIOD, PANEL, write_gif
from worldforge_ros.recording.log import (
    ChunkSample,
    EpisodeLog,
    GateSample,
    Picture,
    PlanSample,
)
from worldforge_ros.recording.page import ticks
from worldforge_ros.recording.progress import STATUS_MARK, STATUS_VARIABLE, ProgressLine, fitted
from worldforge_ros.recording.report import write_report
from worldforge_ros.recording.summary import (
    check_complete,
    checkpoint_hashes,
    latency_rows,
    statistics_ms,
    summarise,
    table,
)

PLAN = PlanSample(
    time=0.0,
    outcome="OK",
    num_candidates=4,
    costs=np.array([4.0, 1.0, math.nan, 2.0], np.float32),
    chosen=1,
    margin=1.0,
    candidates=np.zeros((4, 5, 2), np.float32),
    step=0.1,
    observation_latency=0.010,
    propose_latency=0.100,
    score_latency=0.050,
    plan_latency=0.200,
    propose_model_latency=0.080,
    score_model_latency=0.040,
)
GATE = GateSample(
    time=0.0,
    mode="DISARMED",
    reason="",
    verdict="",
    verdict_sequence=0,
    reason_codes=(),
    chunks_received=0,
    chunks_approved=0,
    chunks_rejected=0,
    steps_executed=0,
    rejected={},
    validation_latency=0.0,
    capture_to_command=0.0,
)


def grey(value: int, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def episode(seconds: float = 2.0) -> EpisodeLog:
    """An episode with a plan every 0.5 s, each approved; a square moves through the picture."""
    log = EpisodeLog(
        seed=7,
        figure=COVERAGE,
        task="push <the> T",
        extent=(0.0, 0.0, 0.5, 0.5),
        duration=seconds,
        wall_duration=seconds * 2,
        goal=grey(90, 96),
    )
    rng = np.random.default_rng(0)
    for index in range(round(seconds / FRAME_PERIOD) + 1):
        time = index * FRAME_PERIOD
        picture = grey(250)
        picture[20:30, 5 + index : 15 + index] = (100, 110, 120)
        log.overview.append(Picture.pack(time, picture))
        log.camera.append(Picture.pack(time, grey(200, 96)))
        log.progress.append((time, min(1.0, 0.1 + time / 10)))
        log.observations += 2
    log.gate.append(GATE)
    for index in range(round(seconds / 0.5)):
        time = index * 0.5
        candidates = rng.uniform(0.05, 0.45, (4, 5, 2)).astype(np.float32)
        log.plans.append(replace(PLAN, time=time, candidates=candidates))
        log.chunks.append(ChunkSample(time, 0.1, candidates[1]))
        log.gate.append(
            replace(
                GATE,
                time=time + 0.01,
                mode="ARMED",
                verdict="APPROVED",
                verdict_sequence=index + 1,
                chunks_received=index + 1,
                chunks_approved=index + 1,
                steps_executed=(index + 1) * 5,
                validation_latency=0.001,
                capture_to_command=0.3 + index * 0.001,
            )
        )
    return log


def test_counts_are_differences_since_the_episode_began() -> None:
    log = episode()
    before = replace(
        GATE, chunks_approved=10, chunks_rejected=3, steps_executed=40, rejected={"A": 2, "B": 1}
    )
    after = replace(
        GATE,
        chunks_approved=14,
        chunks_rejected=8,
        steps_executed=61,
        rejected={"A": 2, "B": 4, "C": 2},
    )
    log.gate = [before, after]
    counts = summarise(log)["counts"]
    assert counts["chunks_approved"] == 4
    assert counts["chunks_rejected"] == 5
    assert counts["executed_steps"] == 21
    assert counts["rejected_by_code"] == {"B": 3, "C": 2}


def test_counts_of_plans() -> None:
    log = episode()
    lost = replace(PLAN, outcome="SCORE_DEADLINE_MISSED", costs=np.empty(0, np.float32))
    log.plans = [PLAN, PLAN, lost]
    counts = summarise(log)["counts"]
    assert counts["plans"] == 3
    assert counts["plans_by_outcome"] == {"OK": 2, "SCORE_DEADLINE_MISSED": 1}
    assert counts["chunks_proposed"] == 12
    assert counts["chunks_scored"] == 6  # one of four costs is NaN
    assert counts["chunks_sent"] == 2


def test_percentiles_by_hand() -> None:
    # Linear interpolation over 0, 1, ..., 100 ms puts p at p.
    assert statistics_ms(i / 1000 for i in range(101)) == {"p50": 50.0, "p95": 95.0, "max": 100.0}
    assert statistics_ms([0.25]) == {"p50": 250.0, "p95": 250.0, "max": 250.0}
    assert statistics_ms([]) is None


def test_latencies_leave_out_stages_that_were_not_reached() -> None:
    log = episode()
    missed = replace(
        PLAN, outcome="PROPOSE_DEADLINE_MISSED", propose_latency=2.0, score_latency=0.0
    )
    log.plans = [PLAN, missed]
    latency = summarise(log)["latency_ms"]
    assert latency["propose"] == {"p50": 100.0, "p95": 100.0, "max": 100.0}
    assert latency["score"]["max"] == 50.0
    assert latency["score_model"]["max"] == 40.0


def test_gate_latency_counts_a_verdict_once() -> None:
    log = episode()
    first = replace(GATE, verdict_sequence=1, validation_latency=0.001, capture_to_command=0.2)
    second = replace(GATE, verdict_sequence=2, validation_latency=0.003, capture_to_command=0.4)
    log.gate = [GATE, first, first, first, second]
    latency = summarise(log)["latency_ms"]
    assert latency["gate"] == {"p50": 2.0, "p95": 2.9, "max": 3.0}
    assert latency["capture_to_command"] == {"p50": 300.0, "p95": 390.0, "max": 400.0}


def test_summary_has_the_documented_keys_and_is_json() -> None:
    summary = summarise(episode(), checkpoints={"policy": "00"})
    assert set(summary) == {
        "seed",
        "planner",
        "distro",
        "versions",
        "counts",
        "latency_ms",
        "deadline_misses",
        "coverage",
        "checkpoints",
        "duration",
        "realtime_factor",
    }
    assert summary["realtime_factor"] == 0.5
    assert summary["coverage"] == {
        "initial": 0.1,
        "final": pytest.approx(0.3),
        "max": pytest.approx(0.3),
    }
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_an_empty_episode_has_no_figures_but_a_summary() -> None:
    summary = summarise(EpisodeLog(0, COVERAGE))
    assert summary["coverage"] == {"initial": None, "final": None, "max": None}
    assert set(summary["latency_ms"].values()) == {None}
    assert summary["realtime_factor"] is None
    assert "coverage" in table(summary)


def rewarded() -> EpisodeLog:
    """An episode of ALOHA: wide pictures, no overview, a reward from 0 to 4."""
    log = episode()
    log.overview, log.extent, log.figure = [], None, REWARD
    wide = np.zeros((48, 64, 3), np.uint8)
    wide[:, :16] = (200, 0, 0)
    log.camera = [Picture.pack(picture.time, wide) for picture in log.camera]
    log.goal = wide
    log.progress = [(0.0, 0.0), (0.5, 2.0), (1.0, 4.0), (2.0, 3.0)]
    return log


def test_each_task_has_its_own_figure(tmp_path: Path) -> None:
    log = rewarded()
    summary = summarise(log)
    assert "coverage" not in summary
    assert summary["reward"] == {"initial": 0.0, "final": 3.0, "max": 4.0}
    assert figure_of(summary) is REWARD
    assert table(summary).startswith("reward     initial 0.00   final 3.00   max 4.00")
    parsed = page(log, tmp_path)
    assert "highest reward" in parsed.text
    assert "Solved above 3 (dashed)" in parsed.text
    assert "overage" not in parsed.text
    assert "Solved above 95% (dashed)" in page(episode(), tmp_path).text


@pytest.mark.parametrize("figure", [COVERAGE, REWARD], ids=lambda figure: figure.name)
def test_a_figure_is_solved_above_its_threshold_and_known(figure: Figure) -> None:
    assert figure.solved(figure.full)
    assert not figure.solved(figure.above)
    assert not figure.solved(None)
    assert figure.text(None) == "-"


def test_a_wide_picture_keeps_its_shape(tmp_path: Path) -> None:
    write_gif(rewarded(), tmp_path / "e.gif")
    with Image.open(tmp_path / "e.gif") as gif:
        assert gif.size == (640 + PANEL, 480)
        frame = np.asarray(gif.convert("RGB")).astype(int)
    red = redness(frame[:, :640])
    assert red[240, :150].min() > 100
    assert red[240, 170:].max() < 50


@pytest.mark.parametrize(
    "count", ["chunks_proposed", "chunks_scored", "chunks_approved", "executed_steps"]
)
def test_an_incomplete_episode_names_the_count_that_is_zero(count: str) -> None:
    summary = summarise(episode())
    check_complete(summary)
    summary["counts"][count] = 0
    summary["counts"]["rejected_by_code"] = {"VELOCITY_LIMIT": 4}
    with pytest.raises(WorldForgeError) as caught:
        check_complete(summary)
    assert caught.value.code is ErrorCode.EPISODE_INCOMPLETE
    assert f"{count} is 0" in caught.value.message
    assert "VELOCITY_LIMIT x4" in caught.value.message


def test_planners_that_do_not_score_need_no_scores() -> None:
    log = episode()
    log.plans = [replace(PLAN, costs=np.empty(0, np.float32))]
    check_complete(summarise(replace(log, planner="random")))
    with pytest.raises(WorldForgeError, match="chunks_scored is 0"):
        check_complete(summarise(replace(log, planner="scored")))


def test_rows_split_the_median_into_model_and_the_rest() -> None:
    rows = {row["stage"]: row for row in latency_rows(summarise(episode()))}
    assert (rows["propose"]["model_ms"], rows["propose"]["ros_ms"]) == (80.0, 20.0)
    assert rows["propose"]["model_share"] == 0.8
    # 200 ms in all, 80 + 40 of them in the models.
    assert (rows["plan"]["model_ms"], rows["plan"]["ros_ms"]) == (120.0, 80.0)
    assert "model_share" not in rows["gate"]


@pytest.mark.parametrize(("factor", "noted"), [(0.25, True), (0.99, False), (None, False)])
def test_simulated_time_is_pointed_out(factor: float | None, noted: bool, tmp_path: Path) -> None:
    log = episode()
    log.wall_duration = 0.0 if factor is None else log.duration / factor
    summary = summarise(log)
    write_report(log, summary, None, tmp_path / "report.html")
    for text in (table(summary), (tmp_path / "report.html").read_text(encoding="utf-8")):
        assert ("are simulated time, which ran at 0.25 x real time" in text) == noted


def test_hashes_name_the_main_weights_and_the_rest(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "policy_preprocessor.safetensors").write_bytes(b"statistics, which are longer")
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_hashes("policy", tmp_path) == {
        "policy": hashlib.sha256(b"weights").hexdigest(),
        "policy/policy_preprocessor.safetensors": hashlib.sha256(
            b"statistics, which are longer"
        ).hexdigest(),
    }
    assert checkpoint_hashes("p", tmp_path / "model.safetensors") == {
        "p": hashlib.sha256(b"weights").hexdigest()
    }


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorldForgeError, match=re.escape(str(tmp_path / "none"))) as caught:
        checkpoint_hashes("policy", tmp_path / "none")
    assert caught.value.code is ErrorCode.CHECKPOINT_MISSING


@given(arrays(np.uint8, (5, 7, 3)))
def test_pictures_survive_packing(image: np.ndarray) -> None:
    assert np.array_equal(Picture.pack(1.0, image).image(), image)


def test_setpoint_of_a_chunk_by_time() -> None:
    chunk = ChunkSample(1.0, 0.1, np.array([[0.1, 0.0], [0.2, 0.0]], np.float32))
    assert chunk.setpoint(0.99) is None
    assert chunk.setpoint(1.05)[0] == np.float32(0.1)  # type: ignore[index]
    assert chunk.setpoint(1.15)[0] == np.float32(0.2)  # type: ignore[index]
    assert chunk.setpoint(1.25) is None


def test_strength_follows_the_rank_of_the_cost() -> None:
    costs = np.array([3.0, 1.0, 1e9, 2.0], np.float32)
    assert cost_strength(costs, 4) == pytest.approx([1 / 3, 1.0, 0.0, 2 / 3])
    assert cost_strength(np.array([math.nan, 5.0], np.float32), 2).tolist() == [0.0, 1.0]
    assert cost_strength(np.empty(0, np.float32), 3).tolist() == [0.0, 0.0, 0.0]


def test_gif_has_one_frame_a_picture_and_the_episodes_length(tmp_path: Path) -> None:
    log = episode()
    path = tmp_path / "episode.gif"
    write_gif(log, path)
    with Image.open(path) as gif:
        assert gif.n_frames == len(log.overview)
        durations = []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
    assert sum(durations[:-1]) == 2000
    assert durations[-1] == 2000
    assert path.stat().st_size < 1_000_000


def scene(log: EpisodeLog, tmp_path: Path) -> np.ndarray:
    """The scene part of the last frame, (480, 480, 3)."""
    path = tmp_path / "one.gif"
    write_gif(log, path)
    with Image.open(path) as gif:
        gif.seek(gif.n_frames - 1)
        return np.asarray(gif.convert("RGB"))[:480, :480].astype(int)


def redness(pixels: np.ndarray) -> np.ndarray:
    """How much redder than green and blue each pixel is."""
    return pixels[..., 0] - pixels[..., 1:].max(-1)


def test_the_chosen_candidate_is_drawn_where_its_metres_say(tmp_path: Path) -> None:
    log = episode(FRAME_PERIOD)
    # 0.1 m of 0.5 m is pixel 96 of 480; the line runs down the picture from 0.1 to 0.4 m.
    line = np.stack([np.full(5, 0.1), np.linspace(0.1, 0.4, 5)], -1).astype(np.float32)
    elsewhere = np.full((5, 2), 0.45, np.float32)
    candidates = np.stack([elsewhere, line, elsewhere, elsewhere])
    log.plans = [replace(PLAN, candidates=candidates)]
    log.chunks = []
    red = redness(scene(log, tmp_path))
    assert red[240, 96] > 100
    assert (red[240, :80] < 30).all()
    assert (red[240, 112:] < 30).all()
    assert (red[60, :] < 30).all()


def test_without_axes_the_picture_is_shown_as_it_is(tmp_path: Path) -> None:
    log = replace(episode(FRAME_PERIOD), extent=None)
    assert redness(scene(log, tmp_path)).max() < 30


def test_the_camera_stands_in_for_a_missing_overview(tmp_path: Path) -> None:
    log = episode()
    log.overview = []
    write_gif(log, tmp_path / "e.gif")
    assert (tmp_path / "e.gif").stat().st_size > 0


def test_an_episode_without_pictures_has_no_gif(tmp_path: Path) -> None:
    log = episode()
    log.overview, log.camera = [], []
    with pytest.raises(WorldForgeError, match="pictures recorded are 0"):
        write_gif(log, tmp_path / "e.gif")


def test_a_long_episode_is_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldforge_ros.recording.gif.MOST_FRAMES", 4)
    log = episode(1.0)
    assert len(log.overview) == 6
    write_gif(log, tmp_path / "e.gif")
    with Image.open(tmp_path / "e.gif") as gif:
        assert gif.n_frames == 3


class Page(HTMLParser):
    """Checks that tags match, and collects links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] != "style":
            self.text += f"{data}\n"


def page(log: EpisodeLog, tmp_path: Path, picture: Path | None = None) -> Page:
    path = tmp_path / "report.html"
    write_report(log, summarise(log, checkpoints={"policy": "0123abcd"}), picture, path)
    parsed = Page()
    parsed.feed(path.read_text(encoding="utf-8"))
    assert parsed.stack == []
    return parsed


def test_report_is_well_formed_and_needs_no_network(tmp_path: Path) -> None:
    picture = tmp_path / "episode.gif"
    write_gif(episode(), picture)
    parsed = page(episode(), tmp_path, picture)
    assert [link.partition(",")[0] for link in parsed.links] == ["data:image/gif;base64"]
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in source
    assert "http" not in source
    assert "Push <the> T" in parsed.text  # escaped in the source
    assert "0123abcd" in parsed.text


def test_report_of_an_empty_episode(tmp_path: Path) -> None:
    parsed = page(EpisodeLog(3, COVERAGE), tmp_path)
    assert "Seed 3" in parsed.text
    assert parsed.links == []


def test_report_survives_odd_values(tmp_path: Path) -> None:
    log = episode()
    log.plans = [
        replace(PLAN, costs=np.full(4, 2.0, np.float32)),
        replace(PLAN, costs=np.full(4, math.nan, np.float32)),
        replace(PLAN, chosen=-1),
    ]
    log.gate.append(replace(GATE, mode="<odd>", rejected={"<b>": 2}))
    parsed = page(log, tmp_path)
    assert "<b>" in parsed.text
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"\bnan\b", source)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_inside_and_evenly_spaced(low: float, span: float, count: int) -> None:
    high = low + span
    found = ticks(low, high, count)
    assert len(found) <= count + 1
    slack = span * 1e-6
    assert all(low - slack <= tick <= high + slack for tick in found)
    if len(found) > 2:
        assert np.ptp(np.diff(found)) <= 1e-6 * span


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STATUS_VARIABLE, raising=False)
    stream = io.StringIO()
    progress = ProgressLine(stream, every=1000.0)
    for index in range(100):
        progress.show(f"{index} %")
    assert stream.getvalue() == "0 %\n"
    progress.done()
    progress.show("last")
    assert stream.getvalue() == "0 %\nlast\n"


def test_a_terminal_gets_one_line_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STATUS_VARIABLE, raising=False)
    stream = Terminal()
    progress = ProgressLine(stream)
    progress.show("10 %")
    progress.done()
    assert stream.getvalue() == "\r\x1b[2K10 %\n"


def test_a_parent_that_updates_lines_gets_marked_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATUS_VARIABLE, "1")
    stream = io.StringIO()
    progress = ProgressLine(stream)
    progress.show("10 %")
    progress.done()
    assert stream.getvalue() == f"{STATUS_MARK}10 %\n{STATUS_MARK}\n"


def test_a_line_that_would_wrap_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert fitted("x" * 19) == "x" * 19
    assert fitted("x" * 20) == "x" * 16 + "..."
