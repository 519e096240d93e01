"""What the planner shows of a cycle, as a picture and as markers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldforge_ros.drawing.plan import PANEL, SIZE, PlanView, draw_plan, pixels_of
from worldforge_ros.drawing.strokes import CHOSEN, MODES, UNREACHABLE, cost_colour
from worldforge_ros.embodiment import load_embodiment, parse_embodiment, read_document
from worldforge_ros.errors import ErrorCode, WorldForgeError

PUSHT = load_embodiment("pusht")
PROJECTION = np.array(PUSHT.cameras["top"].projection)
LEFT, MIDDLE, RIGHT = 0.128, 0.256, 0.384


def view(**changes: Any) -> PlanView:
    """Three candidates that go straight up, side by side; the middle one is the cheapest."""
    heights = np.linspace(0.4, 0.1, 7)
    paths = [np.column_stack([np.full(7, x), heights]) for x in (LEFT, MIDDLE, RIGHT)]
    made = PlanView(
        cycle=3,
        outcome="OK",
        image=np.zeros((96, 96, 3), np.uint8),
        joint_names=("pusher_x", "pusher_y"),
        candidates=np.stack(paths),
        costs=np.array([9.0, 1.0, 4.0], np.float32),
        reachable=np.array([True, True, True]),
        sources=("policy",) * 3,
        chosen=1,
        margin=3.0,
        plan_latency=0.05,
        gate_mode="ARMED",
        gate_reason="armed",
    )
    return replace(made, **changes)


def ends(candidates: Any) -> Any:
    """End effectors (S, H, 1, 3) of the pusher."""
    return np.concatenate([candidates, np.zeros_like(candidates[..., :1])], axis=-1)[:, :, None]


def drawn(made: PlanView) -> Any:
    return draw_plan(made, pixels_of(PROJECTION, ends(made.candidates))).astype(int)


def near(pixel: Any, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel - np.array(colour)).max() < 20)


def test_points_go_to_the_pixels_of_a_pinhole_camera() -> None:
    # 100 pixels focal length, principal point (40, 30), camera 2 m above the origin, x to the
    # right, y down in the picture: (0.5, -0.2, 1.0) is 1 m away, so 40 + 50 and 30 - 20.
    projection = [[100, 0, -40, 80], [0, 100, -30, 60], [0, 0, -1, 2]]
    points = np.array([[0.5, -0.2, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    found = pixels_of(projection, points)
    assert found[0] == pytest.approx([90.0, 10.0])
    assert found[1] == pytest.approx([40.0, 30.0])
    # In the plane of the lens, and behind it.
    assert np.isnan(found[2:]).all()


def test_the_pushers_workspace_fills_its_picture() -> None:
    corners = np.array([[0.0, 0.0, 0.0], [0.512, 0.512, 0.0]])
    assert pixels_of(PROJECTION, corners).tolist() == [[0.0, 0.0], [96.0, 96.0]]


def test_the_picture_has_every_candidate_and_emphasises_the_chosen_one() -> None:
    image = drawn(view())
    assert image.shape == (SIZE, SIZE + PANEL, 3)
    # Between two set-points, so that no dot lies there: y = 0.275 m of 0.512.
    row = image[round(0.275 / 0.512 * SIZE)]
    left, middle, right = (round(x / 0.512 * SIZE) for x in (LEFT, MIDDLE, RIGHT))
    assert near(row[middle], CHOSEN)
    assert (row[middle + 3] > 100).all(), "no white rim around the chosen one"
    assert row[left].sum() > 150
    assert row[right].sum() > 150
    # Nothing else was there.
    assert row[(left + middle) // 2].sum() == 0


def test_the_gates_mode_has_its_colour() -> None:
    for mode, colour in MODES.items():
        panel = drawn(view(gate_mode=mode))[:60, SIZE:]
        assert (np.abs(panel - np.array(colour)).max(axis=-1) == 0).any(), mode


def test_candidates_that_cannot_be_reached_are_grey() -> None:
    image = drawn(view(reachable=np.array([False, True, True])))
    row = image[round(0.275 / 0.512 * SIZE)]
    left, right = (row[round(x / 0.512 * SIZE) - 3 :][:7] for x in (LEFT, RIGHT))
    # Thin lines are blended with the black behind them.
    assert np.ptp(left[left.sum(axis=-1).argmax()]) < np.ptp(UNREACHABLE) + 5
    brightest = right[right.sum(axis=-1).argmax()]
    assert brightest[0] - brightest[2] > 60


def test_costs_are_bars_and_the_chosen_one_is_marked() -> None:
    bars = drawn(view())[SIZE - 44, SIZE + 16 : SIZE + 16 + 42]
    assert near(bars[4], CHOSEN)
    assert near(bars[18], cost_colour(0.5))
    assert near(bars[32], cost_colour(0.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"costs": np.empty(0, np.float32), "margin": math.nan},
        {"costs": np.full(3, np.nan, np.float32), "chosen": -1, "margin": math.nan},
        {"costs": np.zeros(3, np.float32), "chosen": 0},
        {"costs": np.array([-1.0, -2.0, 5.0], np.float32)},
        {"gate_mode": "", "gate_reason": "word " * 80, "outcome": "SCORE_DEADLINE_MISSED"},
        {"candidates": np.full((3, 7, 2), np.nan)},
        {"candidates": np.full((3, 1, 2), 0.2)},
        {"candidates": np.full((3, 7, 2), 1e9)},
    ],
)
def test_whatever_happened_there_is_a_picture(changes: dict[str, Any]) -> None:
    assert drawn(view(**changes)).shape == (SIZE, SIZE + PANEL, 3)


def test_a_cycle_without_candidates_is_the_camera_alone() -> None:
    empty = view(
        candidates=np.empty((0, 0, 0)),
        costs=np.empty(0, np.float32),
        reachable=np.empty(0, bool),
        sources=(),
        chosen=-1,
        outcome="PROPOSE_DEADLINE_MISSED",
    )
    for pixels in (None, np.empty((0, 0, 1, 2))):
        image = draw_plan(empty, pixels)
        assert image.shape == (SIZE, SIZE + PANEL, 3)
        assert not image[:, :SIZE].any()


def test_without_a_projection_every_joint_is_plotted() -> None:
    image = draw_plan(view(), None).astype(int)
    assert image.shape[0] == SIZE + 120
    assert not image[:SIZE, :SIZE].any(), "nothing can be drawn into the picture"
    for joint in range(2):
        plot = image[SIZE:, joint * SIZE // 2 : (joint + 1) * SIZE // 2]
        found = (np.abs(plot - np.array(CHOSEN)).max(axis=-1) < 12).sum()
        assert found > 30, f"joint {joint} has no chosen candidate"


@pytest.mark.parametrize(
    "value",
    [
        [[1, 0, 0, 0], [0, 1, 0, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0, 0], [0, 1, 0, math.nan], [0, 0, 0, 1]],
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
        "identity",
    ],
)
def test_a_projection_that_is_none_is_refused(value: Any) -> None:
    document = read_document("pusht")
    document["cameras"]["top"]["projection"] = value  # type: ignore[index]
    with pytest.raises(WorldForgeError, match=r"cameras\.top\.projection") as caught:
        parse_embodiment(document)
    assert caught.value.code is ErrorCode.EMBODIMENT_INVALID


def test_over_dds_only_while_somebody_looks(ros: Any) -> None:
    from sensor_msgs.msg import Image
    from test_planner_node import COSTS, Stage
    from visualization_msgs.msg import Marker, MarkerArray

    from worldforge_ros.msg import GateStatus
    from worldforge_ros.ros import convert, qos

    stage = Stage(ros)
    stage.serve()
    gate = ros.node.create_publisher(GateStatus, "safety_gate/status", qos.LATCHED)
    gate.publish(GateStatus(mode=GateStatus.ARMED, mode_name="ARMED", epoch=1))
    with ros.process("planner_node", replan_period=0.1) as node:
        stage.first_report()
        loaded = Path(f"/proc/{node.process.pid}/maps")
        before = "_imagingft" in loaded.read_text() if loaded.exists() else False
        assert not before, "PIL's fonts are loaded although nobody looks"
        images: list[Image] = ros.record(Image, "planner_node/debug_image", qos.CHUNK)
        markers: list[MarkerArray] = ros.record(MarkerArray, "planner_node/markers", qos.CHUNK)

        def both() -> bool:
            stage.observe()
            return bool(images) and bool(markers)

        ros.wait_until(both, 20.0, "a picture and markers")
        report = stage.report()
    image = images[-1]
    assert (image.encoding, image.header.frame_id) == ("rgb8", "top")
    pixels = convert.image_from_msg(image, "debug_image").astype(int)
    assert pixels.shape == (SIZE, SIZE + PANEL, 3)
    assert (np.abs(pixels - np.array(CHOSEN)).max(axis=-1) == 0).any()
    found = {(m.ns, m.id): m for m in markers[-1].markers}
    assert {m.header.frame_id for m in found.values()} == {"base"}
    chosen = found[("chosen/path", 0)]
    candidates = convert.tensor_from_msg(report.candidates, "candidates")[0]
    assert chosen.type == Marker.LINE_STRIP
    last = [(p.x, p.y) for p in chosen.points][-1]
    assert last == pytest.approx(tuple(candidates[report.chosen, -1]), abs=0.05)
    assert found[("chosen/label", 0)].text == f"cost {COSTS[report.chosen]:.3g}"
    others = found[("candidates", 0)]
    assert len(others.points) == len(others.colors) == 3 * 2 * (candidates.shape[1] - 1)


def test_a_camera_that_is_not_there_is_said_at_once(ros: Any) -> None:
    with ros.process("planner_node", debug_camera="wrist") as node:
        status, printed = node.finish()
    assert status != 0
    assert "CAMERA_MISSING: parameter debug_camera is 'wrist'; expected one of top" in printed
