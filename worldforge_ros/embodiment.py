"""The embodiment contract: one YAML file says how a robot looks to a policy and to a world
model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

import yaml

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.resources import share_dir

TODO = "TODO"
"""A value that begins with this is for a person to fill in; no such file is accepted."""

UNLIMITED = "unlimited"
"""Stands for a bound that a joint deliberately does not have."""

JointType = Literal["revolute", "continuous", "prismatic"]
Quantity = Literal["position", "velocity"]
ActionMeaning = Literal["absolute", "relative"]


@dataclass(frozen=True)
class Joint:
    """One joint; radians for ``revolute`` and ``continuous``, metres for ``prismatic``.

    Accelerations are per second squared, ``max_jerk`` per second cubed; infinity where the file
    says ``unlimited``. ``max_deceleration`` is how hard the joint can brake, ``max_acceleration``
    where the file leaves it out. Any other bound that it leaves out is ``None``: the gate refuses
    to arm such a joint.
    """

    name: str
    type: JointType
    min_position: float | None
    max_position: float | None
    max_velocity: float | None
    max_acceleration: float | None = None
    max_deceleration: float | None = None
    max_jerk: float | None = None


@dataclass(frozen=True)
class Camera:
    """One camera: relative topic and the picture size in pixels that every frame must have.

    ``projection`` (3, 4) takes a point (x, y, z, 1) in metres in the frame of the workspace to
    (u w, v w, w), where u and v are pixels to the right and down from the picture's top left
    corner; None where nobody has measured it, and nothing can be drawn into the picture. It is
    sensor_msgs/CameraInfo's P times the pose of the workspace in the camera's optical frame.
    """

    name: str
    topic: str
    width: int
    height: int
    projection: tuple[tuple[float, float, float, float], ...] | None = None


@dataclass(frozen=True)
class ObservationSpec:
    """Ages and tolerances of the sensors, in seconds."""

    joint_state_topic: str
    max_age: float
    tolerance: float


@dataclass(frozen=True)
class Tracking:
    """How joints follow set-points.

    ``perfect``: at its set-point one step later. ``pd``: acceleration = k_p (set-point - x)
    - k_v v, semi-implicit Euler every ``period`` seconds.
    """

    law: Literal["perfect", "pd"]
    k_p: float = 0.0
    k_v: float = 0.0
    period: float = 0.0


@dataclass(frozen=True)
class StateFeature:
    """A policy input vector: joints of one quantity, ``policy value = SI value * scale +
    offset``.
    """

    joints: tuple[str, ...]
    quantity: Quantity
    scale: tuple[float, ...]
    offset: tuple[float, ...]


@dataclass(frozen=True)
class ImageFeature:
    """A policy input picture: the frames of one camera."""

    camera: str


@dataclass(frozen=True)
class PolicyAction:
    """Joint actions of a policy: ``policy value = SI value * scale + offset``, per joint."""

    meaning: ActionMeaning
    scale: tuple[float, ...]
    offset: tuple[float, ...]


@dataclass(frozen=True)
class PolicySpec:
    """How the robot looks to a policy; ``step`` is the time between two actions in seconds."""

    step: float
    features: Mapping[str, StateFeature | ImageFeature]
    action: PolicyAction


@dataclass(frozen=True)
class WorldModelAction:
    """Actions of a world model before z-scoring: ``value = (SI value or SI difference) *
    scale``.
    """

    meaning: ActionMeaning
    scale: tuple[float, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


@dataclass(frozen=True)
class WorldModelProprio:
    """Joint state of a world model that takes one: ``quantities`` in order, every joint of each,
    ``value = SI value * scale``.
    """

    quantities: tuple[Quantity, ...]
    scale: tuple[float, ...]


@dataclass(frozen=True)
class WorldModelSpec:
    """How the robot looks to a world model.

    ``block`` actions of ``step`` seconds make one latent step; ``history`` frames are one block
    apart. ``proprio`` is None where no model of this embodiment takes the joint state.
    """

    camera: str
    step: float
    block: int
    history: int
    action: WorldModelAction
    proprio: WorldModelProprio | None = None

    @property
    def block_duration(self) -> float:
        """Seconds of one latent step."""
        return self.step * self.block


Point = tuple[float, float, float]


@dataclass(frozen=True)
class EndEffector:
    """A point that the workspace bounds: two or three prismatic ``joints`` that are its x, y and z
    (z is 0 where only two are given), or the origin of a ``link`` of the URDF.
    """

    name: str
    joints: tuple[str, ...]
    link: str | None


@dataclass(frozen=True)
class Box:
    """Corners of a box in metres; infinite where a side has no bound."""

    min: Point
    max: Point


@dataclass(frozen=True)
class KeepOut:
    """A box that no end effector may enter."""

    name: str
    box: Box


@dataclass(frozen=True)
class ArmShape:
    """An arm as capsules of ``radius`` metres between the origins of consecutive links."""

    name: str
    links: tuple[str, ...]
    radius: float


@dataclass(frozen=True)
class WorkspaceSpec:
    """Where the robot may be, in metres in ``frame``, which is a link where links are named.

    ``polygon`` is seen from above, empty where there is none; ``min_arm_distance`` is between the
    surfaces of any two of ``arms``.
    """

    frame: str
    end_effectors: tuple[EndEffector, ...]
    box: Box | None
    polygon: tuple[tuple[float, float], ...]
    keep_out: tuple[KeepOut, ...]
    arms: tuple[ArmShape, ...]
    min_arm_distance: float | None


@dataclass(frozen=True)
class Embodiment:
    """A validated embodiment file; ``world_model`` is None where nothing is scored, ``workspace``
    where only the joints are limited.
    """

    name: str
    task: str
    joints: tuple[Joint, ...]
    cameras: Mapping[str, Camera]
    observation: ObservationSpec
    tracking: Tracking
    policy: PolicySpec
    world_model: WorldModelSpec | None
    workspace: WorkspaceSpec | None = None

    @property
    def scoring(self) -> WorldModelSpec:
        """The ``world_model`` section, for what scores with one.

        :raises WorldForgeError: ``EMBODIMENT_INVALID`` when the file has none.
        """
        if self.world_model is None:
            raise _invalid(
                "world_model",
                f"absent in {self.name}",
                "a section that tells how the robot looks to a world model, since candidates are "
                "to be scored; the planners 'first' and 'random' do without",
            )
        return self.world_model

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Joint names in the contract's order."""
        return tuple(joint.name for joint in self.joints)


class _Section:
    """A mapping being read: remembers its path for messages and refuses keys nobody asked for."""

    def __init__(self, data: object, path: str) -> None:
        if not isinstance(data, Mapping):
            raise _invalid(path or "the file", data, "a mapping")
        self._data = dict(data)
        self._path = path
        self._read: set[str] = set()

    def where(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def has(self, key: str) -> bool:
        return self._data.get(key) is not None

    def raw(self, key: str) -> object:
        self._read.add(key)
        if key not in self._data:
            raise _invalid(self.where(key), "missing", "a value")
        return self._data[key]

    def forget(self, key: str) -> None:
        """An optional key that is absent, or null."""
        self._read.add(key)

    def section(self, key: str) -> _Section:
        return _Section(self.raw(key), self.where(key))

    def sections(self, key: str) -> tuple[_Section, ...]:
        """An optional list of mappings, each with a ``name`` of its own."""
        self._read.add(key)
        value = self._data.get(key)
        if value is None:
            return ()
        where = self.where(key)
        if not isinstance(value, list) or not value:
            raise _invalid(where, value, "a non-empty list")
        sections = tuple(_Section(item, f"{where}[{index}]") for index, item in enumerate(value))
        names = [section.text("name") for section in sections]
        if len(set(names)) != len(names):
            raise _invalid(where, names, "names without duplicates")
        return sections

    def text(self, key: str) -> str:
        value = self.raw(key)
        if not isinstance(value, str) or not value.strip():
            raise _invalid(self.where(key), value, "non-empty text")
        return value

    def choice(self, key: str, options: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in options:
            raise _invalid(self.where(key), value, f"one of {', '.join(options)}")
        return value

    def number(self, key: str, *, positive: bool = False) -> float:
        return _number(self.raw(key), self.where(key), positive=positive)

    def optional_number(self, key: str, *, positive: bool = False) -> float | None:
        self._read.add(key)
        return self.number(key, positive=positive) if self.has(key) else None

    def optional_bound(self, key: str) -> float | None:
        """A number above 0, or infinity for the word ``unlimited``."""
        self._read.add(key)
        if self._data.get(key) == UNLIMITED:
            return math.inf
        return self.optional_number(key, positive=True)

    def integer(self, key: str, *, minimum: int) -> int:
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise _invalid(self.where(key), value, f"a whole number of at least {minimum}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        value = self.raw(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise _invalid(self.where(key), value, "a non-empty list of names")
        if len(set(value)) != len(value):
            raise _invalid(self.where(key), value, "names without duplicates")
        return tuple(value)

    def per_joint(
        self, key: str, count: int, *, default: float | None = None, positive: bool = False
    ) -> tuple[float, ...] | None:
        """One number for all joints, or a list of ``count``; ``default`` (or None) when absent."""
        self._read.add(key)
        if not self.has(key):
            return None if default is None else (default,) * count
        value = self._data[key]
        items = value if isinstance(value, list) else [value] * count
        if len(items) != count:
            raise _invalid(self.where(key), f"{len(items)} values", f"1 or {count}")
        return tuple(_number(item, self.where(key), positive=positive) for item in items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def done(self) -> None:
        unknown = sorted(str(key) for key in set(self._data) - self._read)
        if unknown:
            raise _invalid(
                self.where(unknown[0]), "an unknown key", f"one of {', '.join(sorted(self._read))}"
            )


def _invalid(field: str, found: object, expected: str) -> WorldForgeError:
    shown = found if isinstance(found, str) else repr(found)
    return mismatch(
        ErrorCode.EMBODIMENT_INVALID, f"embodiment field {field}", found=shown, expected=expected
    )


def _number(value: object, where: str, *, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _invalid(where, value, "a finite number")
    if positive and value <= 0:
        raise _invalid(where, value, "a number above 0")
    return float(value)


def _joint(data: object, path: str) -> Joint:
    section = _Section(data, path)
    acceleration = section.optional_number("max_acceleration", positive=True)
    joint = Joint(
        name=section.text("name"),
        type=cast(JointType, section.choice("type", ("revolute", "continuous", "prismatic"))),
        min_position=section.optional_number("min_position"),
        max_position=section.optional_number("max_position"),
        max_velocity=section.optional_number("max_velocity", positive=True),
        max_acceleration=acceleration,
        max_deceleration=section.optional_number("max_deceleration", positive=True) or acceleration,
        max_jerk=section.optional_bound("max_jerk"),
    )
    section.done()
    low, high = joint.min_position, joint.max_position
    if low is not None and high is not None and low >= high:
        raise _invalid(f"{path}.min_position", low, f"below max_position {high}")
    return joint


def _joints(section: _Section) -> tuple[Joint, ...]:
    raw = section.raw("joints")
    if not isinstance(raw, list) or not raw:
        raise _invalid("joints", raw, "a non-empty list")
    joints = tuple(_joint(item, f"joints[{index}]") for index, item in enumerate(raw))
    names = [joint.name for joint in joints]
    if len(set(names)) != len(names):
        raise _invalid("joints", names, "names without duplicates")
    return joints


def _cameras(section: _Section) -> Mapping[str, Camera]:
    cameras = {}
    for name in section:
        entry = section.section(name)
        cameras[name] = Camera(
            name=name,
            topic=entry.text("topic"),
            width=entry.integer("width", minimum=1),
            height=entry.integer("height", minimum=1),
            projection=_projection(entry),
        )
        entry.done()
    if not cameras:
        raise _invalid("cameras", "empty", "at least one camera")
    return MappingProxyType(cameras)


def _projection(section: _Section) -> tuple[tuple[float, float, float, float], ...] | None:
    if not section.has("projection"):
        section.forget("projection")
        return None
    value, where = section.raw("projection"), section.where("projection")
    rows = value if isinstance(value, list) else []
    if len(rows) != 3 or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise _invalid(where, value, "3 rows of 4 numbers")
    matrix = [[_number(item, f"{where}[{i}]") for item in row] for i, row in enumerate(rows)]
    if not any(matrix[2]):
        raise _invalid(where, value, "a last row with a number other than 0")
    return tuple((a, b, c, d) for a, b, c, d in matrix)


def _tracking(section: _Section) -> Tracking:
    law = section.choice("law", ("perfect", "pd"))
    if law == "perfect":
        tracking = Tracking(law="perfect")
    else:
        tracking = Tracking(
            law="pd",
            k_p=section.number("k_p", positive=True),
            k_v=section.number("k_v", positive=True),
            period=section.number("period", positive=True),
        )
    section.done()
    return tracking


def _feature(
    section: _Section, joints: tuple[str, ...], cameras: Mapping[str, Camera]
) -> StateFeature | ImageFeature:
    feature: StateFeature | ImageFeature
    if section.has("camera"):
        camera = section.choice("camera", tuple(cameras))
        feature = ImageFeature(camera=camera)
    else:
        names = section.names("joints")
        for name in names:
            if name not in joints:
                raise _invalid(section.where("joints"), name, f"one of {', '.join(joints)}")
        count = len(names)
        feature = StateFeature(
            joints=names,
            quantity=cast(Quantity, section.choice("quantity", ("position", "velocity"))),
            scale=_required(section.per_joint("scale", count, default=1.0)),
            offset=_required(section.per_joint("offset", count, default=0.0)),
        )
        _check_scale(feature.scale, section.where("scale"))
    section.done()
    return feature


def _required(value: tuple[float, ...] | None) -> tuple[float, ...]:
    assert value is not None
    return value


def _check_scale(scale: tuple[float, ...], where: str) -> None:
    if any(value == 0.0 for value in scale):
        raise _invalid(where, list(scale), "numbers other than 0, so that the inverse exists")


def _policy(
    section: _Section, joints: tuple[str, ...], cameras: Mapping[str, Camera]
) -> PolicySpec:
    features_section = section.section("features")
    features = {
        name: _feature(features_section.section(name), joints, cameras) for name in features_section
    }
    if not features:
        raise _invalid("policy.features", "empty", "at least one feature")
    action = section.section("action")
    spec = PolicySpec(
        step=section.number("step", positive=True),
        features=MappingProxyType(features),
        action=PolicyAction(
            meaning=cast(ActionMeaning, action.choice("meaning", ("absolute", "relative"))),
            scale=_required(action.per_joint("scale", len(joints), default=1.0)),
            offset=_required(action.per_joint("offset", len(joints), default=0.0)),
        ),
    )
    _check_scale(spec.action.scale, action.where("scale"))
    action.done()
    section.done()
    return spec


def _world_model(
    top: _Section, joints: tuple[str, ...], cameras: Mapping[str, Camera]
) -> WorldModelSpec | None:
    if not top.has("world_model"):
        top.forget("world_model")
        return None
    section = top.section("world_model")
    action = section.section("action")
    count = len(joints)
    spec = WorldModelSpec(
        camera=section.choice("camera", tuple(cameras)),
        step=section.number("step", positive=True),
        block=section.integer("block", minimum=1),
        history=section.integer("history", minimum=1),
        action=WorldModelAction(
            meaning=cast(ActionMeaning, action.choice("meaning", ("absolute", "relative"))),
            scale=_required(action.per_joint("scale", count, default=1.0)),
            mean=action.per_joint("mean", count),
            std=action.per_joint("std", count, positive=True),
        ),
        proprio=_proprio(section, count),
    )
    _check_scale(spec.action.scale, action.where("scale"))
    if (spec.action.mean is None) != (spec.action.std is None):
        raise _invalid(
            "world_model.action",
            "only one of mean and std",
            "both, or neither when a card has them",
        )
    action.done()
    section.done()
    return spec


def _proprio(section: _Section, joints: int) -> WorldModelProprio | None:
    if not section.has("proprio"):
        section.forget("proprio")
        return None
    proprio = section.section("proprio")
    quantities = proprio.names("quantities")
    for name in quantities:
        if name not in ("position", "velocity"):
            raise _invalid(proprio.where("quantities"), name, "position or velocity")
    scale = _required(proprio.per_joint("scale", joints, default=1.0))
    _check_scale(scale, proprio.where("scale"))
    proprio.done()
    return WorldModelProprio(cast(tuple[Quantity, ...], quantities), scale)


def _workspace(top: _Section, joints: tuple[Joint, ...]) -> WorkspaceSpec | None:
    if not top.has("workspace"):
        top.forget("workspace")
        return None
    section = top.section("workspace")
    spec = WorkspaceSpec(
        frame=section.text("frame"),
        end_effectors=tuple(_end_effector(e, joints) for e in section.sections("end_effectors")),
        box=_box(section.section("box")) if section.has("box") else None,
        polygon=_polygon(section),
        keep_out=tuple(_keep_out(entry) for entry in section.sections("keep_out")),
        arms=tuple(_arm(entry) for entry in section.sections("arms")),
        min_arm_distance=section.optional_number("min_arm_distance", positive=True),
    )
    section.forget("box")
    section.done()
    if not spec.end_effectors and (spec.box or spec.polygon or spec.keep_out or not spec.arms):
        raise _invalid("workspace.end_effectors", "absent", "the points that are bounded")
    if (spec.min_arm_distance is None) != (not spec.arms) or len(spec.arms) == 1:
        raise _invalid(
            "workspace.arms",
            f"{len(spec.arms)} with min_arm_distance {spec.min_arm_distance}",
            "two or more with min_arm_distance, or neither",
        )
    return spec


def _end_effector(section: _Section, joints: tuple[Joint, ...]) -> EndEffector:
    name = section.text("name")
    if section.has("link"):
        effector = EndEffector(name, (), section.text("link"))
    else:
        names = section.names("joints")
        sliding = [joint.name for joint in joints if joint.type == "prismatic"]
        if len(names) not in (2, 3) or not set(names) <= set(sliding):
            raise _invalid(
                section.where("joints"),
                list(names),
                f"two or three prismatic joints, of {sliding}, or a link",
            )
        effector = EndEffector(name, names, None)
    section.done()
    return effector


def _box(section: _Section) -> Box:
    low, high = _corner(section, "min", -math.inf), _corner(section, "max", math.inf)
    section.done()
    if all(math.isinf(value) for value in (*low, *high)):
        raise _invalid(section.where("min"), "without a number, as max is", "a bound on a side")
    for axis, (least, greatest) in enumerate(zip(low, high, strict=True)):
        if least >= greatest:
            where = f"{section.where('min')}[{axis}]"
            raise _invalid(where, least, f"below max[{axis}] {greatest}")
    return Box(low, high)


def _corner(section: _Section, key: str, unbounded: float) -> Point:
    """x, y and z, or x and y; null and an absent z have no bound."""
    value, where = section.raw(key), section.where(key)
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise _invalid(where, value, "[x, y] or [x, y, z], with null for a side without bound")
    numbers = [unbounded if item is None else _number(item, where) for item in value]
    x, y, z = (*numbers, unbounded)[:3]
    return (x, y, z)


def _keep_out(section: _Section) -> KeepOut:
    return KeepOut(section.text("name"), _box(section))


def _polygon(section: _Section) -> tuple[tuple[float, float], ...]:
    if not section.has("polygon"):
        section.forget("polygon")
        return ()
    value, where = section.raw("polygon"), section.where("polygon")
    if not isinstance(value, list) or len(value) < 3:
        raise _invalid(where, value, "a list of three corners or more")
    corners = []
    for index, corner in enumerate(value):
        if not isinstance(corner, list) or len(corner) != 2:
            raise _invalid(f"{where}[{index}]", corner, "[x, y]")
        x, y = (_number(item, f"{where}[{index}]") for item in corner)
        corners.append((x, y))
    return tuple(corners)


def _arm(section: _Section) -> ArmShape:
    arm = ArmShape(
        name=section.text("name"),
        links=section.names("links"),
        radius=section.number("radius", positive=True),
    )
    section.done()
    if len(arm.links) < 2:
        raise _invalid(section.where("links"), list(arm.links), "two links or more")
    return arm


def unfilled(data: object, path: str = "") -> tuple[str, ...]:
    """Every field of a parsed YAML document whose value begins with :data:`TODO`, in file order."""
    if isinstance(data, Mapping):
        children = [(f"{path}.{key}" if path else str(key), item) for key, item in data.items()]
    elif isinstance(data, list):
        children = [(f"{path}[{index}]", item) for index, item in enumerate(data)]
    else:
        return (path,) if isinstance(data, str) and data.startswith(TODO) else ()
    return tuple(field for where, item in children for field in unfilled(item, where))


def parse_embodiment(data: object) -> Embodiment:
    """Validate a parsed YAML document.

    :raises WorldForgeError: ``EMBODIMENT_INVALID`` naming the first field that is wrong, or that a
        person has not filled in.
    """
    todo = unfilled(data)
    if todo:
        others = f" (and {len(todo) - 1} more in this file)" if len(todo) > 1 else ""
        raise _invalid(todo[0], f"still {TODO}", f"a value that a person fills in{others}")
    top = _Section(data, "")
    joints = _joints(top)
    names = tuple(joint.name for joint in joints)
    cameras = _cameras(top.section("cameras"))
    observation = top.section("observation")
    embodiment = Embodiment(
        name=top.text("name"),
        task=top.text("task"),
        joints=joints,
        cameras=cameras,
        observation=ObservationSpec(
            joint_state_topic=observation.text("joint_state_topic"),
            max_age=observation.number("max_age", positive=True),
            tolerance=observation.number("tolerance", positive=True),
        ),
        tracking=_tracking(top.section("tracking")),
        policy=_policy(top.section("policy"), names, cameras),
        world_model=_world_model(top, names, cameras),
        workspace=_workspace(top, joints),
    )
    observation.done()
    top.done()
    return embodiment


def known_embodiments() -> tuple[str, ...]:
    """Names of the embodiments shipped in ``config/embodiments``."""
    folder = share_dir() / "config" / "embodiments"
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def load_embodiment(name_or_path: str | Path) -> Embodiment:
    """Load a shipped embodiment by name, or any file by path (``*.yaml`` or with a slash).

    :raises WorldForgeError: ``EMBODIMENT_UNKNOWN`` when there is no such file,
        ``EMBODIMENT_INVALID`` when its content is wrong.
    """
    document = read_document(name_or_path)
    try:
        return parse_embodiment(document)
    except WorldForgeError as error:
        raise WorldForgeError(error.code, f"{error.message} (in {name_or_path})") from error


def read_document(name_or_path: str | Path) -> object:
    """The YAML document of an embodiment, not validated; names and errors as
    :func:`load_embodiment`.
    """
    text = str(name_or_path)
    is_path = "/" in text or text.endswith((".yaml", ".yml"))
    path = Path(text).expanduser() if is_path else _shipped(text)
    if not path.is_file():
        known = ", ".join(known_embodiments())
        raise mismatch(
            ErrorCode.EMBODIMENT_UNKNOWN,
            "embodiment",
            found=f"'{text}'",
            expected=f"one of {known}, or the path of a YAML file",
        )
    try:
        document: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise _invalid(str(path), f"not readable as YAML ({first})", "a YAML mapping") from error
    return document


def _shipped(name: str) -> Path:
    return share_dir() / "config" / "embodiments" / f"{name}.yaml"
