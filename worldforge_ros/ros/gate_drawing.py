"""The gate's workspace, and the ways of the last chunks through it, as markers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from visualization_msgs.msg import MarkerArray

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.ros.markers import MarkerBuilder, scene_markers
from worldforge_ros.safety.checks import Verdict, columns_of, matrix_of
from worldforge_ros.safety.limits import FloatArray
from worldforge_ros.safety.scene import scene_of, violating_rows
from worldforge_ros.safety.workspace import Workspace


class GateDrawing:
    """Beside the gate and not inside its lock: it has a workspace of its own to ask."""

    def __init__(self, embodiment: Embodiment, urdf: Path | None) -> None:
        """Of an embodiment with a workspace section."""
        spec = embodiment.workspace
        assert spec is not None
        self._names = embodiment.joint_names
        self._workspace = Workspace(embodiment, spec, urdf)
        self._builder = MarkerBuilder(spec.frame)
        self._scene = scene_of(spec)

    def take(self, chunk: ActionChunk, verdict: Verdict) -> None:
        """Remember a chunk, where it can be drawn; the last of each verdict stays."""
        actions = matrix_of(chunk) if verdict.clamped is None else verdict.clamped
        if actions is None or set(chunk.joint_names) != set(self._names):
            return
        if actions.shape[1] != len(self._names) or len(chunk.joint_names) != len(self._names):
            return
        positions: FloatArray = actions[:, columns_of(chunk, self._names)]
        points = self._workspace.points(positions)
        if verdict.approved:
            self._scene = replace(self._scene, approved=points, rejected=None, violating=None)
        else:
            bad = violating_rows(self._workspace, positions)
            self._scene = replace(self._scene, rejected=points, violating=bad)

    def message(self, stamp: int) -> MarkerArray:
        """Everything there is to see, at ``stamp`` ns."""
        return self._builder.build(scene_markers(self._scene), stamp)
