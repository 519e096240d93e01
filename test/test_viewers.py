"""Layouts for viewers against the topics and messages that the nodes really have.

No viewer runs here: what a layout names is looked up in the graph of running nodes, and every path
into a message is walked through the message's definition. About 10 s.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from worldforge_ros.bringup import TASKS
from worldforge_ros.embodiment import load_embodiment

pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")

from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from ros_support import Ros

from worldforge_ros.ros.listening import message_class

CONFIG = Path(__file__).resolve().parents[1] / "config"
IMAGE = "sensor_msgs/msg/Image"
MARKERS = "visualization_msgs/msg/MarkerArray"
NUMBERS = {
    "boolean", "octet", "float", "double", "int8", "uint8", "int16", "uint16", "int32", "uint32",
    "int64", "uint64",
}  # fmt: skip
TIMES = {"builtin_interfaces/Time", "builtin_interfaces/Duration"}
"""Foxglove reads them as seconds."""
NODES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("planner_node", {}),
    ("safety_gate_node", {}),
    ("score_node", {"autostart": False}),
    ("pusht_sim_node", {}),
)
TOPICS = (
    "/planner_node/debug_image", "/planner_node/markers", "/plan_report",
    "/action_chunk/proposed", "/safety_gate/status", "/safety_gate/markers", "/joint_commands",
    "/score_node/surprise", "/camera/top/image_raw", "/joint_states", "/goal_image",
    "/diagnostics",
)  # fmt: skip
"""What the layouts may show."""


@dataclass(frozen=True)
class Offered:
    """A topic as its publisher offers it."""

    type: str
    latched: bool
    reliable: bool


@pytest.fixture(scope="module")
def offered() -> Iterator[dict[str, Offered]]:
    """Every topic of :data:`TOPICS`, from the graph of running nodes."""
    ros = Ros()
    with ExitStack() as stack:
        for module, parameters in NODES:
            stack.enter_context(ros.process(module, **parameters))

        def publishers(topic: str) -> Any:
            return ros.node.get_publishers_info_by_topic(topic)

        for topic in TOPICS:
            ros.wait_until(lambda name=topic: publishers(name), 60.0, f"publisher of {topic}")
        yield {
            topic: Offered(
                publishers(topic)[0].topic_type,
                publishers(topic)[0].qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
                publishers(topic)[0].qos_profile.reliability == ReliabilityPolicy.RELIABLE,
            )
            for topic in TOPICS
        }
    ros.close()


def field(type_name: str, path: list[str]) -> str:
    """Type of the field at the end of ``path``, whose parts are names and ``[k]`` or ``[:]``."""
    for number, part in enumerate(path):
        if part.startswith("["):
            matched = re.fullmatch(r"sequence<(.+?)>|(.+)\[\d+\]", type_name)
            assert matched, f"{type_name} is no array: {path}"
            type_name = matched[1] or matched[2]
        else:
            assert "/" in type_name, f"{type_name} has no fields: {path}"
            package, _, name = type_name.rpartition("/")
            message = message_class(f"{package.removesuffix('/msg')}/msg/{name}")
            fields = message.get_fields_and_field_types()
            assert part in fields, f"{type_name} has no {part}: {path[: number + 1]}"
            type_name = fields[part]
    return type_name


def test_paths_are_walked_through_the_definitions() -> None:
    report = "worldforge_ros/msg/PlanReport"
    assert field(report, ["costs", "[:]"]) == "float"
    assert field(report, ["plan_latency"]) in TIMES
    assert field(report, ["plan_latency", "nanosec"]) == "uint32"
    for wrong in (["cost"], ["margin", "[0]"], ["margin", "x"], ["plan_latency", "nsec"]):
        with pytest.raises(AssertionError):
            field(report, wrong)


# Foxglove and Lichtblick: panels by id "Type!name", each with its settings.

FOXGLOVE = json.loads((CONFIG / "foxglove/pusht.json").read_text(encoding="utf-8"))
PANELS: dict[str, dict[str, Any]] = FOXGLOVE["configById"]
MESSAGE_PATH = re.compile(r"(/[A-Za-z0-9_/]+)((?:\.[A-Za-z0-9_]+|\[\d+\]|\[:\])*)")


def kind(panel: str) -> str:
    return panel.partition("!")[0]


def leaves(node: Any) -> list[str]:
    """Panels of a mosaic."""
    if isinstance(node, str):
        return [node]
    assert set(node) == {"direction", "first", "second", "splitPercentage"}
    assert node["direction"] in ("row", "column")
    assert 0 < node["splitPercentage"] < 100
    return leaves(node["first"]) + leaves(node["second"])


def foxglove_field(path: str, offered: dict[str, Offered]) -> str:
    matched = MESSAGE_PATH.fullmatch(path)
    assert matched, path
    parts = re.findall(r"[A-Za-z0-9_]+|\[\d+\]|\[:\]", matched[2])
    # Foxglove's Time and Duration have sec and nsec; they are plotted whole.
    assert not {"sec", "nanosec"} & set(parts), path
    return field(offered[matched[1]].type, parts)


def test_foxglove_layout_has_the_sections_that_an_import_wants() -> None:
    assert set(FOXGLOVE) == {
        "configById", "globalVariables", "userNodes", "playbackConfig", "layout",
    }  # fmt: skip
    assert FOXGLOVE["playbackConfig"] == {"speed": 1}
    assert FOXGLOVE["globalVariables"] == FOXGLOVE["userNodes"] == {}


def test_every_foxglove_panel_is_shown_once() -> None:
    shown = leaves(FOXGLOVE["layout"])
    for panel, settings in PANELS.items():
        if kind(panel) == "Tab":
            assert 0 <= settings["activeTabIdx"] < len(settings["tabs"])
            shown += [leaf for tab in settings["tabs"] for leaf in leaves(tab["layout"])]
    assert sorted(shown) == sorted(PANELS)
    assert {kind(panel) for panel in PANELS} == {
        "3D", "DiagnosticSummary", "Image", "Indicator", "Plot", "RawMessages",
        "StateTransitions", "Tab",
    }  # fmt: skip


def test_foxglove_panels_show_topics_of_the_type_they_want(offered: dict[str, Offered]) -> None:
    for panel, settings in PANELS.items():
        if kind(panel) == "Image":
            assert offered[settings["imageMode"]["imageTopic"]].type == IMAGE
        elif kind(panel) == "3D":
            assert {offered[topic].type for topic in settings["topics"]} == {MARKERS}
            workspace = load_embodiment("pusht").workspace
            assert workspace is not None
            assert settings["followTf"] == workspace.frame
        elif kind(panel) == "DiagnosticSummary":
            topic = offered[settings["topicToRender"]]
            assert topic.type == "diagnostic_msgs/msg/DiagnosticArray"


def test_foxglove_plots_are_of_numbers(offered: dict[str, Offered]) -> None:
    plots = [settings for panel, settings in PANELS.items() if kind(panel) == "Plot"]
    paths = [path["value"] for settings in plots for path in settings["paths"]]
    assert {"/plan_report.costs[:]", "/plan_report.margin", "/plan_report.plan_latency"} <= {*paths}
    for path in paths:
        assert foxglove_field(path, offered) in NUMBERS | TIMES, path


def test_foxglove_states_and_texts_are_fields(offered: dict[str, Offered]) -> None:
    for panel, settings in PANELS.items():
        if kind(panel) == "StateTransitions":
            found = {foxglove_field(path["value"], offered) for path in settings["paths"]}
            assert found == {"string"}
        elif kind(panel) == "RawMessages":
            foxglove_field(settings["topicPath"], offered)


def test_foxglove_indicator_knows_every_mode_of_the_gate(offered: dict[str, Offered]) -> None:
    from worldforge_ros.msg import GateStatus

    indicator = PANELS["Indicator!gate"]
    assert foxglove_field(indicator["path"], offered) == "uint8"
    rules = {rule["label"]: int(rule["rawValue"]) for rule in indicator["rules"]}
    modes = ("DISARMED", "ARMED", "HOLDING", "STOPPED")
    assert rules == {mode: getattr(GateStatus, mode) for mode in modes}


# RViz: displays with a class and a topic, each with its own quality of service.

DISPLAYED = {"rviz_default_plugins/Image": IMAGE, "rviz_default_plugins/MarkerArray": MARKERS}


@pytest.mark.parametrize("name", ["pusht", "aloha"])
def test_rviz_displays_hear_their_topics(name: str, offered: dict[str, Offered]) -> None:
    content = yaml.safe_load((CONFIG / f"rviz/{name}.rviz").read_text(encoding="utf-8"))
    manager = content["Visualization Manager"]
    workspace = load_embodiment("pusht").workspace
    assert workspace is not None
    assert manager["Global Options"]["Fixed Frame"] == workspace.frame
    displays = [item for item in manager["Displays"] if "Topic" in item]
    for display in displays:
        topic, wanted = offered[display["Topic"]["Value"]], display["Topic"]
        assert topic.type == DISPLAYED[display["Class"]], display["Name"]
        # What is published once must be heard by a viewer that comes later, and a subscription
        # that asks for more than is offered hears nothing.
        latched = {"Transient Local": True, "Volatile": False}[wanted["Durability Policy"]]
        assert latched == topic.latched, display["Name"]
        reliable = {"Reliable": True, "Best Effort": False}[wanted["Reliability Policy"]]
        assert topic.reliable or not reliable
    shown = {display["Topic"]["Value"] for display in displays}
    camera = f"/{load_embodiment(name).cameras['top'].topic}"
    assert {camera, "/planner_node/debug_image", "/planner_node/markers"} <= shown
    # A dock is called as its display is.
    docks = {display["Name"] for display in displays if display["Class"].endswith("/Image")}
    assert docks <= set(content["Window Geometry"])


# PlotJuggler: curves of series, whose names are paths with slashes.

PLOTJUGGLER = ElementTree.parse(CONFIG / "plotjuggler/pusht.xml").getroot()


def series_type(name: str, selected: list[str], offered: dict[str, Offered]) -> str:
    """Type of the field that PlotJuggler makes a series of."""
    topic = next(topic for topic in selected if name.startswith(f"{topic}/"))
    path = name.removeprefix(f"{topic}/")
    if offered[topic].type == "sensor_msgs/msg/JointState":
        joint, _, quantity = path.partition("/")
        assert joint in load_embodiment("pusht").joint_names
        return field(offered[topic].type, [quantity, "[0]"])
    parts = re.findall(r"[A-Za-z0-9_]+(?![\]\w])|\[\d+\]", path)
    assert "/".join(parts).replace("/[", "[") == path
    for index in re.findall(r"costs\[(\d+)\]", path):
        assert int(index) < TASKS["pusht"].candidates
    return field(offered[topic].type, parts)


def test_plotjuggler_curves_are_series_of_the_topics_that_are_selected(
    offered: dict[str, Offered],
) -> None:
    plugin = PLOTJUGGLER.find("Plugins/plugin")
    streamer = PLOTJUGGLER.find("previouslyLoaded_Streamer")
    assert plugin is not None
    assert streamer is not None
    assert plugin.attrib["ID"] == streamer.attrib["name"] == "ROS2 Topic Subscriber"
    settings = {item.tag: item.attrib["value"] for item in plugin}
    selected = settings["selected_topics"].split(";")
    assert set(selected) <= set(offered)
    assert int(settings["max_array_size"]) >= TASKS["pusht"].candidates, "longer ones are left out"
    made = {}
    for snippet in PLOTJUGGLER.iterfind("customMathEquations/snippet"):
        sources = [snippet.findtext("linked_source", "")]
        sources += [item.text or "" for item in snippet.iterfind("additional_sources/v1")]
        made[snippet.attrib["name"]] = sources
        assert [source.rpartition("/")[2] for source in sources] == ["nanosec", "sec"]
        assert snippet.findtext("function") == "return v1 + value * 1e-9"
    curves = [curve.attrib["name"] for curve in PLOTJUGGLER.iter("curve")]
    assert len(curves) == len(set(curves))
    assert set(made) <= set(curves)
    plain = set(curves) - set(made)
    for name in plain | {source for sources in made.values() for source in sources}:
        assert series_type(name, selected, offered) in NUMBERS, name
    heard = {topic for topic in selected if any(c.startswith(f"{topic}/") for c in plain)}
    assert heard == set(selected), "every topic that is taken in is shown"


def test_plotjuggler_splitters_have_what_they_count() -> None:
    window = PLOTJUGGLER.find("tabbed_widget")
    assert window is not None
    assert window.attrib == {"name": "Main Window", "parent": "main_window"}
    for splitter in PLOTJUGGLER.iter("DockSplitter"):
        sizes = [float(size) for size in splitter.attrib["sizes"].split(";")]
        assert len(splitter) == len(sizes) == int(splitter.attrib["count"])
        assert sum(sizes) == pytest.approx(1.0)
    for area in PLOTJUGGLER.iter("DockArea"):
        assert [child.tag for child in area] == ["plot"]
