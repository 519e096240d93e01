"""What the planner thought, as a picture and as markers, while somebody looks."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image
from visualization_msgs.msg import MarkerArray

from worldforge_ros.embodiment import Camera, Embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.msg import GateStatus
from worldforge_ros.planning.cycle import Trace
from worldforge_ros.ros import convert, qos
from worldforge_ros.ros.diagnostics import Diagnostics
from worldforge_ros.ros.markers import MarkerBuilder, candidate_markers
from worldforge_ros.ros.runtime import Worker
from worldforge_ros.safety.limits import FloatArray
from worldforge_ros.safety.workspace import Workspace, workspace_of

if TYPE_CHECKING:
    from worldforge_ros.drawing.plan import PlanView


class PlanDrawing:
    """Publishes ``~/debug_image`` and ``~/markers``, one of each for a cycle, only while they have
    subscribers. Drawn in a thread of its own: planning does not wait for it, and of cycles that
    end faster than they are drawn the newest is drawn.
    """

    def __init__(
        self,
        node: Node,
        diagnostics: Diagnostics,
        embodiment: Embodiment,
        camera: str,
        urdf: Path | None,
    ) -> None:
        """:param camera: name of the camera whose picture is drawn into; empty: the world model's,
            or the first.
        :raises WorldForgeError: ``CAMERA_MISSING`` for a camera that the embodiment has not.
        """
        scored = embodiment.world_model
        name = camera or (next(iter(embodiment.cameras)) if scored is None else scored.camera)
        if name not in embodiment.cameras:
            raise mismatch(
                ErrorCode.CAMERA_MISSING,
                "parameter debug_camera",
                found=f"'{name}'",
                expected=f"one of {', '.join(embodiment.cameras)} of embodiment {embodiment.name}",
            )
        self._node = node
        self._diagnostics = diagnostics
        self._embodiment = embodiment
        self._camera: Camera = embodiment.cameras[name]
        self._urdf = urdf
        self._images = node.create_publisher(Image, "~/debug_image", qos.CHUNK)
        self._markers = node.create_publisher(MarkerArray, "~/markers", qos.CHUNK)
        self._gate: GateStatus | None = None
        self._worker: Worker[None] | None = None
        self._workspace: Workspace | None = None
        self._builder: MarkerBuilder | None = None

    def gate(self, message: GateStatus) -> None:
        """What the gate says now."""
        self._gate = message

    def ended(self, trace: Trace) -> None:
        """Show a cycle, if anybody looks."""
        wanted = (
            self._images.get_subscription_count() > 0,
            self._markers.get_subscription_count() > 0,
        )
        if not any(wanted):
            return
        if self._worker is None:
            self._worker = Worker(self._node, "drawing")
        self._worker.spare("plan", partial(self._guarded, trace, self._gate, *wanted))

    def _guarded(self, trace: Trace, gate: GateStatus | None, image: bool, markers: bool) -> None:
        try:
            self._show(trace, gate, image, markers)
        except Exception as error:
            if self._node.context.ok():
                self._diagnostics.unexpected(error, "drawing a plan")

    def _show(self, trace: Trace, gate: GateStatus | None, image: bool, markers: bool) -> None:
        # PIL, MuJoCo and shapely are loaded by whoever looks first.
        from worldforge_ros.drawing.plan import PlanView, draw_plan, pixels_of

        points = self._points(trace)
        choice = trace.choice
        view = PlanView(
            cycle=trace.cycle,
            outcome=trace.outcome,
            image=trace.observation.images[self._camera.name],
            joint_names=self._embodiment.joint_names,
            candidates=trace.candidates,
            costs=trace.costs,
            reachable=trace.reachable,
            sources=trace.sources,
            chosen=-1 if choice is None else choice.index,
            margin=math.nan if choice is None else choice.margin,
            plan_latency=trace.plan_latency,
            gate_mode="" if gate is None else gate.mode_name,
            gate_reason=_words(gate),
        )
        if image:
            projection = self._camera.projection
            if points is None or projection is None:
                drawn = draw_plan(view, None)
            else:
                drawn = draw_plan(view, pixels_of(projection, points))
            stamp = trace.observation.stamp
            self._images.publish(convert.image_to_msg(drawn, stamp, self._camera.name))
        if markers and points is not None and self._builder is not None:
            self._markers.publish(self._array(view, points))

    def _array(self, view: PlanView, points: FloatArray) -> MarkerArray:
        from worldforge_ros.drawing.strokes import UNREACHABLE, cost_colour, cost_strength

        assert self._builder is not None
        count = len(points)
        ranks = cost_strength(view.costs, count)
        colours = [
            tuple(value / 255 for value in (cost_colour(rank) if reached else UNREACHABLE))
            for rank, reached in zip(ranks, view.reachable, strict=True)
        ]
        cost = view.costs[view.chosen] if 0 <= view.chosen < len(view.costs) else math.nan
        label = f"cost {cost:.3g}" if math.isfinite(cost) else "chosen"
        markers = candidate_markers(points, colours, view.chosen, label)
        return self._builder.build(markers, self._node.get_clock().now().nanoseconds)

    def _points(self, trace: Trace) -> FloatArray | None:
        """End effectors (S, H, E, 3) of every candidate, m; None without a workspace."""
        spec = self._embodiment.workspace
        if spec is None:
            return None
        if self._workspace is None:
            self._workspace = workspace_of(self._embodiment, self._urdf)
            self._builder = MarkerBuilder(spec.frame)
        assert self._workspace is not None
        if not trace.candidates.size:
            return np.empty((0, 0, self._workspace.effectors, 3))
        samples, horizon, joints = trace.candidates.shape
        rows = trace.candidates.reshape(samples * horizon, joints).astype(np.float64)
        points: FloatArray = self._workspace.points(rows).reshape(
            samples, horizon, self._workspace.effectors, 3
        )
        return points


def _words(gate: GateStatus | None) -> str:
    """Why the gate is in its mode, and what it said of a chunk that it did not let pass."""
    if gate is None:
        return ""
    refused = " ".join(gate.reason_codes) if gate.verdict == "REJECTED" else ""
    return f"{gate.reason}. Last chunk rejected: {refused}" if refused else str(gate.reason)
