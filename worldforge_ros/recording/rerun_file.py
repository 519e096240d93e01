"""A recording for the Rerun viewer: what was seen, proposed, scored, chosen and sent, in time.

Only rerun-sdk is imported beside numpy, and only when a recording begins.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import ImageArray
from worldforge_ros.safety.scene import box_edges, drawable, scene_of
from worldforge_ros.safety.workspace import Workspace

FloatArray = npt.NDArray[np.floating[Any]]

APPLICATION = "worldforge_ros"
FILE_NAME = "recording.rrd"
ROS_TIME, RECEIVE_TIME = "ros_time", "receive_time"
"""Timelines: the stamp of what a message is about, and the wall clock when it arrived."""
FLUSH_TIMEOUT = 3.0
"""Seconds that writing what is buffered may take; a supervisor kills after five."""
JPEG = {"jpeg": "image/jpeg", "jpg": "image/jpeg", "png": "image/png"}
"""Media type of a compressed picture by the word in its ``format``."""
CHOSEN, CANDIDATE, MEASURED = (200, 20, 60), (232, 150, 60), (120, 130, 145)
APPROVED = (26, 204, 51)
LEVELS = {"DISARMED": "INFO", "ARMED": "INFO", "HOLDING": "WARN", "STOPPED": "ERROR"}
"""Log level at which the gate goes into each mode."""


class When(NamedTuple):
    """Nanoseconds on both timelines."""

    ros: int
    received: int


def require_rerun() -> None:
    """:raises WorldForgeError: ``DEPENDENCY_MISSING`` without rerun-sdk, which is not imported."""
    if importlib.util.find_spec("rerun") is None:
        raise mismatch(
            ErrorCode.DEPENDENCY_MISSING,
            "python module rerun",
            found="absent",
            expected="rerun-sdk for a recording: pip install rerun-sdk",
        )


class RerunFile:
    """Writes one ``.rrd`` file. Every method takes what one message says, and :class:`When`.

    Entities: ``camera/<name>`` with ``candidates`` and ``chosen`` in it, ``goal``, ``workspace``
    with ``bounds``, ``candidates``, ``chosen``, ``approved`` and ``target``, ``costs``,
    ``latency`` (seconds), ``joints/<name>`` with ``position`` and ``command`` (m or rad),
    ``surprise``, ``gate/mode``, ``log/gate`` and ``log/plan``.
    """

    def __init__(
        self,
        path: Path,
        embodiment: Embodiment,
        workspace: Workspace | None = None,
        *,
        simulated: bool = False,
        jpeg_quality: int = 90,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """:param path: file to make; its folder is made too.
        :param workspace: where there is one, candidates are drawn.
        :param simulated: ROS time is a simulator's, counted from its start, and no date.
        :param jpeg_quality: of raw pictures in the file, 1 to 100; 0 keeps them as they are.
        :param notes: what the recording says about itself.
        :raises WorldForgeError: ``DEPENDENCY_MISSING`` without rerun-sdk, ``INVALID_ARGUMENT`` for
            a path that exists or cannot be written.
        """
        require_rerun()
        if path.exists() or path.is_symlink():
            raise _bad_path(path, "there already", "a path that does not exist")
        import rerun as rr

        self.path = path
        self._rr = rr
        self._embodiment = embodiment
        self._workspace = workspace
        self._simulated = simulated
        self._jpeg_quality = jpeg_quality
        self._gate: tuple[str, str] = ("", "")
        self._verdict = -1
        self._outcome = ""
        self._stream = rr.RecordingStream(APPLICATION)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream.save(path, default_blueprint=_blueprint(embodiment, workspace))
        except (OSError, RuntimeError) as error:
            raise _bad_path(path, f"not writable ({error})", "a place for a file") from error
        if notes:
            self._stream.send_property(APPLICATION, rr.AnyValues(**notes))
        self._draw_once()

    @property
    def size_bytes(self) -> int:
        """Of the file as it is now."""
        return self.path.stat().st_size if self.path.exists() else 0

    def flush(self) -> None:
        """Write what is buffered.

        :raises WorldForgeError: ``RECORDING_INCOMPLETE`` when it cannot be written.
        """
        try:
            self._stream.flush(timeout_sec=FLUSH_TIMEOUT)
        except RuntimeError as error:
            raise WorldForgeError(
                ErrorCode.RECORDING_INCOMPLETE,
                f"recording {self.path} cannot be written any further "
                f"({' '.join(str(error).split())}); what was written before can be read",
            ) from error

    def close(self) -> None:
        """Write what is buffered and end the file.

        :raises WorldForgeError: as :meth:`flush`.
        """
        try:
            self.flush()
        finally:
            self._stream.disconnect()

    def picture(self, camera: str, image: ImageArray, when: When) -> None:
        """A camera's picture (height, width, 3) uint8 RGB."""
        self._log(("camera", camera), self._image(image), when)

    def encoded_picture(self, camera: str, data: bytes, encoding: str, when: When) -> None:
        """A camera's picture as it was compressed.

        :param encoding: ``format`` of ``sensor_msgs/CompressedImage``.
        :raises WorldForgeError: ``IMAGE_ENCODING_UNSUPPORTED`` for anything but JPEG and PNG.
        """
        media = next((JPEG[word] for word in JPEG if word in encoding.lower()), None)
        if media is None:
            raise mismatch(
                ErrorCode.IMAGE_ENCODING_UNSUPPORTED,
                f"format of camera {camera}",
                found=f"'{encoding}'",
                expected="jpeg or png",
            )
        picture = self._rr.EncodedImage(contents=bytes(data), media_type=media)
        self._log(("camera", camera), picture, when)

    def goal(self, image: ImageArray, when: When) -> None:
        """The picture (height, width, 3) uint8 RGB of the state to bring about."""
        self._log(("goal",), self._image(image), when)

    def joints(self, positions: FloatArray, when: When) -> None:
        """Measured positions (J,) in the embodiment's order, m or rad."""
        self._joints("position", positions, when)

    def commands(self, setpoints: FloatArray, when: When) -> None:
        """Set-points (J,) that were sent, in the embodiment's order, m or rad.

        :raises WorldForgeError: ``ACTION_DIM_MISMATCH`` for another number of joints.
        """
        joints = len(self._embodiment.joints)
        if setpoints.shape != (joints,):
            raise mismatch(
                ErrorCode.ACTION_DIM_MISMATCH,
                "commands",
                found=f"{setpoints.size} set-points",
                expected=f"{joints}, one for each joint of embodiment {self._embodiment.name}",
            )
        self._joints("command", setpoints, when)

    def target(self, position: FloatArray, when: When) -> None:
        """Commanded position (3,) of the end effector, m."""
        point = self._rr.Points3D([position], radii=self._points(5.0), colors=[CHOSEN])
        self._log(("workspace", "target"), point, when)

    def plan(
        self,
        candidates: FloatArray,
        costs: FloatArray,
        reachable: npt.NDArray[np.bool_],
        chosen: int,
        margin: float,
        outcome: str,
        message: str,
        latencies: Mapping[str, float],
        when: When,
    ) -> None:
        """One planning cycle.

        :param candidates: (S, H, J) set-points in m or rad, as they would be executed.
        :param costs: (S,), NaN where there is none; or (0,) where nothing was scored.
        :param reachable: (S,).
        :param chosen: index of the chosen candidate, -1 for none.
        :param margin: cost of the runner-up minus that of the chosen one, NaN without.
        :param latencies: seconds by stage, 0 for one that was not reached.
        :param when: on ``ros_time`` the capture of the observation that was planned from, so that
            candidates lie over the picture that they were made from.
        :raises WorldForgeError: ``TENSOR_SHAPE_MISMATCH`` when the arrays do not go together,
            ``INVALID_ARGUMENT`` when the chosen one is none of them.
        """
        samples = len(candidates)
        if candidates.ndim != 3 or len(reachable) != samples or len(costs) not in (0, samples):
            raise mismatch(
                ErrorCode.TENSOR_SHAPE_MISMATCH,
                "candidates, costs and reachable of a plan",
                found=f"{candidates.shape}, {costs.shape} and {reachable.shape}",
                expected="(S, H, J), (S,) or none, and (S,)",
            )
        if not -1 <= chosen < samples:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "chosen of a plan",
                found=chosen,
                expected=f"-1 or below {samples}",
            )
        rr = self._rr
        self._strips(candidates, costs, reachable, chosen, when)
        if np.isfinite(costs).any():
            self._log(("costs", "candidates"), rr.Scalars(costs.astype(np.float64)), when)
        if 0 <= chosen < len(costs):
            self._log(("costs", "chosen"), rr.Scalars(float(costs[chosen])), when)
        if np.isfinite(margin):
            self._log(("margin",), rr.Scalars(float(margin)), when)
        self._latencies(latencies, when)
        if outcome != self._outcome:
            self._outcome = outcome
            line = rr.TextLog(outcome, level="INFO")
            if outcome != "OK":
                line = rr.TextLog(f"{outcome}: {message}", level="WARN")
            self._log(("log", "plan"), line, when)

    def gate(
        self,
        mode: int,
        mode_name: str,
        reason: str,
        verdict: str,
        sequence: int,
        reasons: Sequence[str],
        latencies: Mapping[str, float],
        when: When,
    ) -> None:
        """The gate's status: its mode is a series and, when it changes, a line of text; so is each
        chunk that it did not let pass as it was.

        :param verdict: on the chunk ``sequence``, with all its ``reasons``.
        :param latencies: seconds by stage, of that chunk.
        """
        rr = self._rr
        self._log(("gate", "mode"), rr.Scalars(float(mode)), when)
        if (mode_name, reason) != self._gate:
            self._gate = (mode_name, reason)
            line = rr.TextLog(f"{mode_name}: {reason}", level=LEVELS.get(mode_name, "ERROR"))
            self._log(("log", "gate"), line, when)
        if verdict and sequence != self._verdict:
            self._verdict = sequence
            self._latencies(latencies, when)
            if verdict != "APPROVED":
                text = f"chunk {sequence} {verdict}: {'; '.join(reasons)}"
                self._log(("log", "gate"), rr.TextLog(text, level="WARN"), when)

    def approved(self, actions: FloatArray, when: When) -> None:
        """Set-points (H, J) that the gate let pass, in the embodiment's order, m or rad."""
        if self._workspace is not None:
            points = self._workspace.points(actions.astype(np.float64))
            paths = [drawable(points[:, end]) for end in range(points.shape[1])]
            strips = self._rr.LineStrips3D(
                paths, colors=[APPROVED] * len(paths), radii=self._points(1.5)
            )
            self._log(("workspace", "approved"), strips, when)

    def surprise(self, error: float, standardised: float, when: When) -> None:
        """How wrong the world model was about the last block; ``standardised`` is NaN where it has
        no card.
        """
        self._log(("surprise", "error"), self._rr.Scalars(float(error)), when)
        if np.isfinite(standardised):
            self._log(("surprise", "standardised"), self._rr.Scalars(float(standardised)), when)

    def _strips(
        self,
        candidates: FloatArray,
        costs: FloatArray,
        reachable: npt.NDArray[np.bool_],
        chosen: int,
        when: When,
    ) -> None:
        """Ways of the end effectors in the workspace and in every camera that can be drawn into."""
        if self._workspace is None:
            return
        # PIL is loaded by a recording that draws.
        from worldforge_ros.drawing.plan import pixels_of
        from worldforge_ros.drawing.strokes import UNREACHABLE, cost_colour, cost_strength

        rr, ends = self._rr, self._workspace.effectors
        samples = len(candidates)
        points = np.empty((0, 0, ends, 3))
        if candidates.size:
            rows = candidates.reshape(-1, candidates.shape[-1]).astype(np.float64)
            points = self._workspace.points(rows).reshape(samples, -1, ends, 3)
        strength = cost_strength(costs.astype(np.float32), samples)
        # The cheap ones over the costly ones.
        order = [int(k) for k in np.argsort(strength, kind="stable") if k != chosen]
        colours = {k: cost_colour(strength[k]) if reachable[k] else UNREACHABLE for k in order}
        labels = [f"cost {cost:.4g}" for cost in costs] or ["unscored"] * samples
        views: list[tuple[tuple[str, ...], FloatArray, Any]] = [
            (("workspace",), points, rr.LineStrips3D)
        ]
        for camera in self._embodiment.cameras.values():
            if camera.projection is not None:
                pixels = pixels_of(camera.projection, points)
                views.append((("camera", camera.name), pixels, rr.LineStrips2D))
        for entity, paths, strips in views:
            ways = [(drawable(paths[k][:, end]), k) for k in order for end in range(ends)]
            ways = [(way, k) for way, k in ways if len(way) > 1]
            others = strips(
                [way for way, _ in ways],
                colors=[colours[k] for _, k in ways],
                labels=[f"{k}: {labels[k]}" for _, k in ways],
                show_labels=False,
                radii=self._points(1.0),
            )
            self._log((*entity, "candidates"), others, when)
            best = [drawable(paths[chosen][:, end]) for end in range(ends)] if chosen >= 0 else []
            best = [way for way in best if len(way) > 1]
            taken = strips(
                best,
                colors=[CHOSEN] * len(best),
                labels=[labels[chosen]] * len(best) if best else [],
                radii=self._points(2.5),
            )
            self._log((*entity, "chosen"), taken, when)

    def _joints(self, what: str, values: FloatArray, when: When) -> None:
        for name, value in zip(self._embodiment.joint_names, values.tolist(), strict=True):
            self._log(("joints", name, what), self._rr.Scalars(value), when)

    def _latencies(self, latencies: Mapping[str, float], when: When) -> None:
        for stage, seconds in latencies.items():
            if seconds > 0:
                self._log(("latency", stage), self._rr.Scalars(seconds), when)

    def _draw_once(self) -> None:
        """What does not change: the workspace, and how series look."""
        rr = self._rr
        line, names = rr.SeriesLines, self._embodiment.joint_names
        self._static(
            ("costs", "candidates"), rr.SeriesPoints(colors=[CANDIDATE], marker_sizes=[1.5])
        )
        self._static(("costs", "chosen"), line(colors=[CHOSEN], names=["chosen"], widths=[2.0]))
        self._static(("gate", "mode"), line(names=["0 disarmed, 1 armed, 2 holding, 3 stopped"]))
        for joint, unit in zip(names, self._units(), strict=True):
            for what, colour in (("position", MEASURED), ("command", CHOSEN)):
                style = line(colors=[colour], names=[f"{what}, {unit}"])
                self._static(("joints", joint, what), style)
        if self._workspace is None:
            return
        self._static(("workspace",), rr.ViewCoordinates.RIGHT_HAND_Z_UP)
        scene = scene_of(self._workspace.spec)
        if scene.box is not None:
            edges = box_edges(scene.drawn_box).reshape(-1, 2, 3)
            bounds = rr.LineStrips3D(edges, colors=[MEASURED] * len(edges), radii=self._points(0.7))
            self._static(("workspace", "bounds"), bounds)

    def _units(self) -> list[str]:
        return ["m" if j.type == "prismatic" else "rad" for j in self._embodiment.joints]

    def _image(self, image: ImageArray) -> Any:
        picture = self._rr.Image(image)
        return picture.compress(jpeg_quality=self._jpeg_quality) if self._jpeg_quality else picture

    def _points(self, size: float) -> Any:
        """A radius in points of the screen, the same however far one zooms."""
        return self._rr.Radius.ui_points(size)

    def _static(self, entity: tuple[str, ...], data: Any) -> None:
        self._stream.log(list(entity), data, static=True, strict=True)

    def _log(self, entity: tuple[str, ...], data: Any, when: When) -> None:
        if self._simulated:
            self._stream.set_time(ROS_TIME, duration=np.timedelta64(when.ros, "ns"))
        else:
            self._stream.set_time(ROS_TIME, timestamp=np.datetime64(when.ros, "ns"))
        self._stream.set_time(RECEIVE_TIME, timestamp=np.datetime64(when.received, "ns"))
        self._stream.log(list(entity), data, strict=True)


def _blueprint(embodiment: Embodiment, workspace: Workspace | None) -> Any:
    """Pictures and the workspace to the left, series and text to the right."""
    import rerun as rr
    import rerun.blueprint as rrb

    cameras = [
        rrb.Spatial2DView(origin=rr.new_entity_path(["camera", name]), name=f"camera {name}")
        for name in embodiment.cameras
    ]
    below: list[Any] = [rrb.Spatial2DView(origin="/goal", name="goal")]
    if workspace is not None:
        below.append(rrb.Spatial3DView(origin="/workspace", name=f"workspace, {workspace.frame}"))
    joints = [
        rrb.TimeSeriesView(origin=rr.new_entity_path(["joints", name]), name=name)
        for name in embodiment.joint_names
    ]
    series = [
        rrb.TimeSeriesView(origin=f"/{name}", name=title)
        for name, title in (
            ("latency", "latency, s"),
            ("margin", "margin to the runner-up"),
            ("surprise", "surprise"),
            ("gate", "gate mode"),
        )
    ]
    return rrb.Blueprint(
        rrb.Horizontal(
            rrb.Vertical(rrb.Tabs(*cameras), rrb.Horizontal(*below), row_shares=[3, 2]),
            rrb.Vertical(
                rrb.TimeSeriesView(origin="/costs", name="costs, lower is better"),
                rrb.Tabs(*series),
                rrb.Grid(*joints, name="joints"),
                rrb.TextLogView(origin="/log", name="gate and planner"),
            ),
            column_shares=[2, 3],
        ),
        rrb.TimePanel(timeline=ROS_TIME),
        collapse_panels=True,
    )


def _bad_path(path: Path, found: str, expected: str) -> WorldForgeError:
    return mismatch(ErrorCode.INVALID_ARGUMENT, f"recording {path}", found=found, expected=expected)
