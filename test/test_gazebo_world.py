"""The Gazebo world of PushT: valid in both flavours, gym-pusht's size, motion and picture."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.resources import resolve_path
from worldforge_ros.simulation.gazebo import FLAVOURS, SYSTEMS, to_screen, world_text
from worldforge_ros.simulation.gazebo_picture import (
    Pose,
    compose,
    draw,
    pose_of,
    pusht_poses,
    read_scene,
)
from worldforge_ros.simulation.gazebo_run import WORLD_FILE
from worldforge_ros.simulation.pusht import PHYSICS_STEP, UNITS_PER_METRE, PushTSimulation

FloatArray = npt.NDArray[np.float64]
TEXT = resolve_path(WORLD_FILE).read_text(encoding="utf-8")
ROBOT = load_embodiment("pusht")
STATE = [260.0, 120.0, 200.0, 330.0, 0.6]


@cache
def world() -> ElementTree.Element:
    found = ElementTree.fromstring(TEXT).find("world")
    assert found is not None
    return found


def part(path: str) -> ElementTree.Element:
    """A link, joint or plugin: ``part("tee/tee_link")``."""
    found = world()
    for name in path.split("/"):
        (found,) = (item for item in found if item.get("name") == name)
    return found


def number(of: ElementTree.Element, path: str) -> float:
    text = of.findtext(path)
    assert text is not None, path
    return float(text)


def outline(of: ElementTree.Element) -> FloatArray:
    """The four corners (4, 2) of a box seen from above, in gym-pusht's axes and units."""
    place, rotation = pose_of(of.findtext("pose"))
    assert np.array_equal(rotation, np.eye(3))
    size = [float(value) for value in (of.findtext("geometry/box/size") or "").split()]
    signs = np.array([[-1, 1], [1, 1], [1, -1], [-1, -1]])
    corners = place[:2] + signs * size[:2] / 2
    return corners * [UNITS_PER_METRE, -UNITS_PER_METRE]


def simulation() -> PushTSimulation:
    pytest.importorskip("gym_pusht", reason="gym-pusht is missing: set up with make setup")
    return PushTSimulation()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_libsdformat_takes_the_world(flavour: str, tmp_path: Path) -> None:
    tool = shutil.which("ign") or shutil.which("gz")
    if tool is None:
        pytest.skip("ign is missing: apt-get install ignition-tools libsdformat-dev")
    file = tmp_path / "pusht.sdf"
    file.write_text(world_text(TEXT, flavour), encoding="utf-8")
    done = subprocess.run([tool, "sdf", "-k", str(file)], capture_output=True, text=True)
    if "sdf:" not in subprocess.run([tool, "help"], capture_output=True, text=True).stdout:
        pytest.skip(f"{tool} has no command sdf: apt-get install libsdformat-dev")
    assert done.stdout.strip() == "Valid.", done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr


def test_plugins_are_the_allowed_systems_in_both_flavours() -> None:
    for flavour, library, namespace in (
        ("gz", "gz-sim", "gz::sim"),
        ("ignition", "ignition-gazebo", "ignition::gazebo"),
    ):
        root = ElementTree.fromstring(world_text(TEXT, flavour))
        found = {(p.get("filename"), p.get("name")) for p in root.iter("plugin")}
        assert found == {
            (f"{library}-{part}-system", f"{namespace}::systems::{system}")
            for system, part in SYSTEMS.items()
        }
        assert len(found) == len(list(root.iter("plugin")))
        engine = root.findtext("world/plugin/render_engine")
        assert engine == {"gz": "ogre2", "ignition": "ogre"}[flavour]


@pytest.mark.parametrize(
    ("old", "new", "flavour", "says"),
    [
        ("gz-sim-sensors-system", "gz-sim-wind-effects-system", "gz", "wind-effects"),
        ("gz::sim::systems::Sensors", "gz::sim::systems::Physics", "gz", "gz-sim-sensors"),
        ("gz-sim-sensors-system", "/tmp/own.so", "ignition", "/tmp/own.so"),
        (">ogre2<", ">optix<", "gz", "optix"),
        ("</sdf>", "", "gz", "not XML"),
        ("", "", "gazebo", "'gazebo'"),
    ],
)
def test_what_is_not_on_the_list_is_refused(old: str, new: str, flavour: str, says: str) -> None:
    changed = TEXT.replace(old, new) if old else TEXT
    with pytest.raises(WorldForgeError, match=re.escape(says)) as caught:
        world_text(changed, flavour)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_fortress_gets_colours_as_the_screen_shows_them() -> None:
    linear = [tuple(map(float, e.text.split())) for e in world().iter("emissive") if e.text]
    old = ElementTree.fromstring(world_text(TEXT, "ignition"))
    shown = [tuple(map(float, e.text.split())) for e in old.iter("emissive") if e.text]
    for before, after in zip(linear, shown, strict=True):
        np.testing.assert_allclose(after[:3], to_screen(before[:3]), atol=1e-4)
        assert after[3] == before[3] == 1.0
    # The comments beside the colours.
    said = [list(map(int, m)) for m in re.findall(r"sRGB (\d+) (\d+) (\d+)", TEXT)]
    np.testing.assert_allclose(np.array(shown)[:, :3] * 255.0, said, atol=0.3)
    everything_else = re.sub(r"<emissive>.*", "", world_text(TEXT, "ignition"))
    assert everything_else.count("\n") == TEXT.count("\n")


def test_names_inside_a_link_differ() -> None:
    for link in world().iter("link"):
        names = [item.get("name") for item in link if item.tag in ("visual", "collision", "sensor")]
        assert len(set(names)) == len(names), link.get("name")
    models = [model.get("name") for model in world().findall("model")]
    assert sorted(models) == ["goal", "pusher", "table", "tee", "top"]  # type: ignore[type-var]


def test_masses_and_inertias_are_those_of_bodies() -> None:
    for model in world().findall("model"):
        for link in model.findall("link"):
            inertial = link.find("inertial")
            if model.findtext("static") == "true":
                assert inertial is None, "a static model needs none"
                continue
            assert inertial is not None, link.get("name")
            assert number(inertial, "mass") > 0.0
            moments = sorted(number(inertial, f"inertia/{axis}") for axis in ("ixx", "iyy", "izz"))
            assert moments[0] > 0.0
            assert moments[0] + moments[1] >= moments[2], "no body has such moments"
            for product in ("ixy", "ixz", "iyz"):
                assert number(inertial, f"inertia/{product}") == 0.0


def test_the_tee_is_gym_pushts() -> None:
    env = simulation()._env
    link = part("tee/tee_link")
    bar, stem = env._block_shapes
    for name, shape in (("bar", bar), ("stem", stem)):
        corners = outline(part(f"tee/tee_link/tee_{name}_collision"))
        expected = np.array([tuple(vertex) for vertex in shape.get_vertices()])
        order = np.lexsort(np.round(corners, 6).T), np.lexsort(expected.T)
        np.testing.assert_allclose(corners[order[0]], expected[order[1]], atol=1e-9)
    # Its mass is where gym-pusht has it, and turning resists as it does there.
    centre = pose_of(link.findtext("inertial/pose"))[0]
    mass, block = number(link, "inertial/mass"), env.block
    np.testing.assert_allclose(centre[:2] * [1e3, -1e3], block.center_of_gravity, atol=1e-9)
    assert number(link, "inertial/inertia/izz") / mass * 1e6 == pytest.approx(
        block.moment / block.mass
    )
    # The feet's viscous friction: about the same centre, in the same ratio, for one step of time.
    feet = [item for item in link.findall("collision") if item.find("geometry/sphere") is not None]
    places = np.array([pose_of(item.findtext("pose"))[0] for item in feet])
    slips = {item.findtext(f"surface/friction/ode/slip{i}") for item in feet for i in (1, 2)}
    (slip,) = (float(text or "nan") for text in slips)
    np.testing.assert_allclose(places[:, :2].mean(axis=0), centre[:2], atol=1e-9)
    ring = ((places[:, :2] - centre[:2]) ** 2).sum(axis=1).mean() * 1e6
    assert ring == pytest.approx(block.moment / block.mass, rel=1e-3)
    assert mass / (len(feet) / slip) == pytest.approx(PHYSICS_STEP)
    for item, place in zip(feet, places, strict=True):
        assert place[2] == number(item, "geometry/sphere/radius"), "stands on the table at z = 0"


def masks(path: str) -> int:
    return int(number(part(path), "surface/contact/collide_bitmask"))


def test_who_touches_whom() -> None:
    pusher = masks("pusher/tip_link/tip_collision")
    table = masks("table/table_link/table_collision")
    link = part("tee/tee_link")
    boxes = [masks(f"tee/tee_link/tee_{name}_collision") for name in ("bar", "stem")]
    feet = [
        masks(f"tee/tee_link/{item.get('name')}")
        for item in link.findall("collision")
        if "foot" in item.get("name", "")
    ]
    walls = [
        masks(f"table/table_link/wall_{side}_collision")
        for side in ("left", "right", "top", "bottom")
    ]
    for box in boxes:
        assert box & pusher
        assert all(box & wall for wall in walls)
        assert not box & table, "the feet carry the T"
    assert all(foot & table and not foot & pusher for foot in feet)
    assert not pusher & table
    assert not any(pusher & wall for wall in walls), "gym-pusht's pusher is not stopped"
    for item in world().iter("collision"):
        assert item.findtext("surface/bounce/restitution_coefficient") == "0"


def test_the_pusher_follows_the_embodiments_law() -> None:
    tip = part("pusher/tip_link")
    assert number(part("pusher/tip_link/tip_collision"), "geometry/cylinder/radius") == 0.015
    tip_mass, carriage = (
        number(link, "inertial/mass") for link in (tip, part("pusher/carriage_link"))
    )
    carried = {"pusher_x": tip_mass + carriage, "pusher_y": tip_mass}
    (controller,) = (
        p
        for p in part("pusher").findall("plugin")
        if (p.get("name") or "").endswith("JointTrajectoryController")
    )
    gains = [float(item.text or "nan") for item in controller.findall("position_p_gain")]
    assert [float(item.text or "nan") for item in controller.findall("position_d_gain")] == [0, 0]
    law = ROBOT.tracking
    # Half a step of the law's integration comes off the damping.
    damping = law.k_v - law.k_p * law.period / 2.0
    for gain, joint in zip(gains, ROBOT.joints, strict=True):
        assert gain / carried[joint.name] == pytest.approx(law.k_p, rel=0.02)
        axis = part(f"pusher/{joint.name}").find("axis")
        assert axis is not None
        assert number(axis, "dynamics/damping") == pytest.approx(damping)
        assert (number(axis, "limit/lower"), number(axis, "limit/upper")) == (
            joint.min_position,
            joint.max_position,
        )
    # Joint values are gym-pusht's: the tip's place for joint values (x, y) is (x, -y).
    assert part("pusher/pusher_x").findtext("axis/xyz") == "1 0 0"
    assert part("pusher/pusher_y").findtext("axis/xyz") == "0 -1 0"
    assert part("pusher").find("pose") is None


def test_the_camera_sees_the_table_from_corner_to_corner() -> None:
    _, camera = read_scene(TEXT, {})
    assert (camera.width, camera.height) == (ROBOT.cameras["top"].width,) * 2
    # gym-pusht draws coordinate 0 in the middle of its first pixel.
    for x, y in ((0, 0), (512, 0), (0, 512), (512, 512), (256, 100)):
        point = np.array([x - 0.5, 0.5 - y, 0.0]) / UNITS_PER_METRE - camera.pose[0]
        ahead, left, up = camera.pose[1].T @ point
        scale = camera.width / 2.0 / np.tan(camera.field / 2.0) / ahead
        column, row = camera.width / 2.0 - left * scale, camera.height / 2.0 - up * scale
        np.testing.assert_allclose([column, row], np.array([x, y]) * 96 / 512, atol=0.01)
    (clip,) = world().iter("clip")
    assert number(clip, "near") < camera.pose[0][2] - 0.02
    assert number(clip, "far") > camera.pose[0][2]
    # What stands highest is displaced by less than half a pixel where the picture ends.
    heights = [
        compose(pose_of(link.findtext("pose")), pose_of(visual.findtext("pose")))[0][2] * 2.0
        for link in world().iter("link")
        for visual in link.findall("visual")
    ]
    assert max(heights) / camera.pose[0][2] * 48 < 0.5


def test_the_picture_is_gym_pushts() -> None:
    gym = simulation()
    ways = []
    for seed in range(2000, 2010):
        gym.reset(seed=seed)
        found = draw(*read_scene(TEXT, pusht_poses(gym.state)))
        ways.append(np.abs(found.astype(np.int16) - gym.image()))
    # Only edges differ: gym-pusht does not smooth them.
    assert np.mean(ways) < 1.2
    assert np.mean(np.max(ways, axis=-1) > 32) < 0.015


@pytest.mark.parametrize("wrong", [(6.0, 0, 0, 0, 0), (0, 0, 6.0, 0, 0), (0, 0, 0, 0, 0.1)])
def test_the_picture_tells_a_wrong_place(wrong: tuple[float, ...]) -> None:
    gym = simulation()
    gym.set_state(STATE)
    true = np.square(_drawn(STATE) - gym.image()).mean()
    moved = np.square(_drawn(np.add(STATE, wrong)) - gym.image()).mean()
    assert moved > 1.3 * true


def _drawn(state: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return draw(*read_scene(TEXT, pusht_poses(state))).astype(np.float64)


def test_rays_hit_what_is_nearest() -> None:
    text = """<sdf><world><model name="m"><link name="l">
      <visual name="box"><pose>0 0 1 0 0 0</pose><geometry><box><size>1 1 2</size></box></geometry>
        <material><emissive>1 0 0 1</emissive></material></visual>
      <visual name="disc"><pose>0 0 0.5 0 0 0</pose>
        <geometry><cylinder><radius>2</radius><length>1</length></cylinder></geometry>
        <material><emissive>0 1 0 1</emissive></material></visual>
      <sensor name="s"><pose>0 0 12 0 1.5707963267948966 1.5707963267948966</pose><camera>
        <horizontal_fov>0.5</horizontal_fov><image><width>60</width><height>60</height></image>
      </camera></sensor></link></model></world></sdf>"""
    place: dict[str, Pose] = {}
    picture = draw(*read_scene(text, place), samples=((0.0, 0.0),))
    red, green = picture[..., 0] == 255, picture[..., 1] == 255
    scale = 30.0 / np.tan(0.25)
    # The box's top is 10 m away, the disc's 11 m; the box hides the middle of the disc.
    assert red.sum() == pytest.approx((scale * 1.0 / 10) ** 2, rel=0.15)
    assert (red | green).sum() == pytest.approx(np.pi * (scale * 2.0 / 11) ** 2, rel=0.05)
    assert not (red & green).any()
    assert picture[0, 0].tolist() == [0, 0, 0]
