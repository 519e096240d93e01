"""The SROS 2 policy against the nodes as they are: nothing more, nothing less.

Every node runs as a process without its model; the test reads each one's publishers,
subscriptions, services and clients from the graph. About 20 s.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from worldforge_ros.bags.names import recorded_topics
from worldforge_ros.bringup import TASKS, bring_up
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.security import enclave_of

POLICY = Path(__file__).resolve().parents[1] / "config/security/policy.xml"
PEOPLE = {"operator", "stop_button"}
"""Profiles of what this package has no node for."""
OWN_SERVICES = {
    "~/describe_parameters",
    "~/get_parameter_types",
    "~/get_parameters",
    "~/list_parameters",
    "~/set_parameters",
    "~/set_parameters_atomically",
    "~/get_type_description",
}
OTHERS = {"gazebo_bridge"}
"""Profiles of other packages' nodes."""
FROM_OUTSIDE = {"camera/top/image_raw/compressed", "action_chunk/candidate"}
"""Topics that only other packages' nodes publish."""


class Right(NamedTuple):
    """``kind`` is publish, subscribe, reply or request; ``name`` is absolute or relative to the
    node's namespace.
    """

    kind: str
    name: str


Rights = dict[str, set[Right]]


def full_name(name: str, node: str) -> str:
    """``~`` written out."""
    return f"{node}{name[1:]}" if name.startswith("~") else name


def policy() -> Rights:
    """Rights of each node."""
    rights: Rights = {}
    for profile in ElementTree.parse(POLICY).iter("profile"):
        node = profile.attrib["node"]
        assert node not in rights
        rights[node] = set()
        for section in profile:
            for kind, qualifier in section.attrib.items():
                assert qualifier == "ALLOW", "what is not allowed is denied anyway"
                for expression in section:
                    right = Right(kind, full_name((expression.text or "").strip(), node))
                    assert right not in rights[node], f"{node}: {right} is given twice"
                    rights[node].add(right)
    return rights


def holders(kind: str, name: str) -> set[str]:
    return {node for node, rights in policy().items() if Right(kind, name) in rights}


def test_there_is_one_enclave_for_each_node_of_the_package_and_each_person() -> None:
    root = ElementTree.parse(POLICY).getroot()
    assert root.attrib["version"] == "0.2.0"
    found = {
        enclave.attrib["path"]: [profile.attrib["node"] for profile in enclave.iter("profile")]
        for enclave in root.iter("enclave")
    }
    given = {"embodiment": "aloha", "policy_path": "/p", "world_model": "/w", "record": "rerun"}
    given["bag"] = "/b"
    nodes = {spec.name for task in TASKS.values() for spec in bring_up(task, given)}
    assert found == {enclave_of(node): [node] for node in nodes | PEOPLE}
    assert {profile.attrib["ns"] for profile in root.iter("profile")} == {"/"}


def test_enclaves_hold_nothing_but_enclaves() -> None:
    # ``ros2 security generate_artifacts`` takes a comment there for an enclave without a path.
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    enclaves = ElementTree.parse(POLICY, parser).getroot().find("enclaves")
    assert enclaves is not None
    assert {child.tag for child in enclaves} == {"enclave"}


def test_no_right_is_a_pattern() -> None:
    for rights in policy().values():
        for right in rights:
            assert not set(right.name) & set("*?[]"), right


@pytest.mark.parametrize(
    ("kind", "name", "nodes"),
    [
        ("publish", "action_chunk/proposed", {"planner_node"}),
        ("publish", "action_chunk/approved", {"safety_gate"}),
        ("publish", "joint_commands", {"safety_gate"}),
        ("publish", "joint_trajectory", {"safety_gate"}),
        ("publish", "target_pose", {"safety_gate"}),
        ("publish", "safety_gate/status", {"safety_gate"}),
        ("publish", "safety_gate/protective_stop", {"stop_button"}),
        ("publish", "joint_states", {"pusht_sim", "aloha_sim", "mock_robot", "gazebo_pusht"}),
        ("publish", "/clock", {"pusht_sim", "aloha_sim", "gazebo_pusht"}),
        ("publish", "gazebo_pusht/joint_trajectory", {"gazebo_pusht"}),
        ("request", "/world/pusht/set_pose", {"gazebo_pusht"}),
        ("publish", "heartbeat", {"planner_node", "policy_node", "score_node"}),
        ("subscribe", "action_chunk/proposed", {"safety_gate", "record_node"}),
        ("request", "safety_gate/enable", {"operator", "episode_node"}),
        ("request", "safety_gate/rearm", {"operator"}),
        ("request", "safety_gate/stop", {"operator"}),
        ("request", "safety_gate/set_parameters", {"operator"}),
        ("reply", "safety_gate/stop", {"safety_gate"}),
    ],
)
def test_what_moves_a_robot_is_in_few_hands(kind: str, name: str, nodes: set[str]) -> None:
    assert holders(kind, name) == nodes


def test_people_ask_only_for_what_some_node_offers() -> None:
    rights = policy()
    everything = {right for node in set(rights) - PEOPLE for right in rights[node]}
    offers = {"request": "reply", "subscribe": "publish", "publish": "subscribe"}
    for person in PEOPLE:
        own = {Right("reply", full_name(name, person)) for name in OWN_SERVICES}
        for right in rights[person] - own - {Right("publish", "/parameter_events")}:
            if right != Right("publish", "/rosout"):
                assert Right(offers[right.kind], right.name) in everything, f"{person}: {right}"


def test_the_bridge_to_gazebo_may_do_what_its_file_says() -> None:
    entries = yaml.safe_load((POLICY.parents[1] / "gazebo/bridge.yaml").read_text())
    kinds = {"GZ_TO_ROS": "publish", "ROS_TO_GZ": "subscribe"}
    bridged = {Right(kinds[entry["direction"]], entry["ros_topic_name"]) for entry in entries}
    own = {Right("reply", full_name(name, "gazebo_bridge")) for name in OWN_SERVICES}
    # Of every C++ node.
    own |= {Right("publish", name) for name in ("/parameter_events", "/rosout")}
    own.add(Right("subscribe", "/parameter_events"))
    service = Right("reply", "/world/pusht/set_pose")
    assert policy()["gazebo_bridge"] == bridged | own | {service}


def test_who_listens_is_served() -> None:
    rights = policy()
    offers = {"request": "reply", "subscribe": "publish"}
    everything = {right for given in rights.values() for right in given}
    unserved = {
        right.name
        for given in rights.values()
        for right in given
        if right.kind in offers and Right(offers[right.kind], right.name) not in everything
    }
    assert unserved == FROM_OUTSIDE


SHARE = "package://worldforge_ros/models/pusht"
WAVES: tuple[tuple[tuple[str, str, dict[str, Any]], ...], ...] = (
    (
        ("observation_node", "observation_node", {}),
        ("policy_node", "policy_node", {"policy_path": f"{SHARE}/policy", "autostart": False}),
        ("score_node", "score_node", {"model_path": f"{SHARE}/world_model", "autostart": False}),
        (
            "planner_node",
            "planner_node",
            {"extra_sources": "[supplied]", "seam": "temporal_ensemble"},
        ),
        ("safety_gate", "safety_gate_node", {}),
        ("pusht_sim", "pusht_sim_node", {}),
        ("episode_node", "episode_node", {}),
        ("record_node", "record_node", {}),
        ("rerun_node", "rerun_node", {}),
    ),
    (
        ("observation_node", "observation_node", {"image_transport": "compressed"}),
        ("safety_gate", "safety_gate_node", {"output": "joint_trajectory"}),
        ("aloha_sim", "aloha_sim_node", {}),
        ("episode_node", "episode_node", {"task": "aloha", "embodiment": "aloha"}),
        ("record_node", "record_node", {"embodiment": "aloha"}),
        ("rerun_node", "rerun_node", {"embodiment": "aloha"}),
    ),
    (
        ("safety_gate", "safety_gate_node", {"output": "target_pose"}),
        ("mock_robot", "mock_robot_node", {"embodiment": "aloha"}),
        ("gazebo_pusht", "gazebo_pusht_node", {}),
        ("episode_node", "episode_node", {"task": "gazebo"}),
        ("record_node", "record_node", {}),
        ("rerun_node", "rerun_node", {}),
    ),
)
"""Name, module and parameters of nodes that run together: every setting of a node that gives it
another endpoint is in one of the waves.
"""
ROBOTS = ("aloha", "pusht")
RECORDED = {topic.name for name in ROBOTS for topic in recorded_topics(load_embodiment(name), True)}
RECORDERS = {
    "record_node": RECORDED,
    "rerun_node": RECORDED - {"observation", "action_chunk/proposed"},
}
"""What each of them listens to."""
NAMESPACE = "/tested"
"""Of every node, so that an absolute name is told from a relative one."""


def endpoints(ros: Any, name: str) -> set[Right]:
    """What the graph says of one node; nothing while it does not know the node's name, which
    travels apart from its services.
    """
    from rclpy.node import NodeNameNonExistentError

    try:
        return known_endpoints(ros.node, name)
    except NodeNameNonExistentError:
        return set()


def known_endpoints(node: Any, name: str) -> set[Right]:
    """What the graph says of a node whose name it knows."""
    found = {
        "publish": node.get_publisher_names_and_types_by_node,
        "subscribe": node.get_subscriber_names_and_types_by_node,
        "reply": node.get_service_names_and_types_by_node,
        "request": node.get_client_names_and_types_by_node,
    }
    return {
        Right(kind, topic.removeprefix(f"{NAMESPACE}/"))
        for kind, read in found.items()
        for topic, _ in read(name, NAMESPACE)
    }


def run(wave: tuple[tuple[str, str, dict[str, Any]], ...], folder: Path) -> Rights:
    """Start the nodes of a wave and read what each has on the graph."""
    from builtin_interfaces.msg import Time
    from gazebo_support import with_interfaces
    from rcl_interfaces.srv import ListParameters
    from ros_support import Ros
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import CompressedImage

    ros = Ros()
    # A recorder listens to what is published, and only once there is time.
    clock = ros.node.create_publisher(Clock, "/clock", 10)
    driver = f"{NAMESPACE}/camera/top/image_raw/compressed"
    ros.node.create_publisher(CompressedImage, driver, 10)
    with ExitStack() as stack:
        gazebo = "gazebo_pusht" in {name for name, _, _ in wave}
        if gazebo:
            with_interfaces(stack.enter_context(pytest.MonkeyPatch.context()))
            stack.enter_context(ros.process("gazebo_stand_in.py", "-r", f"__ns:={NAMESPACE}"))
        for name, module, given in wave:
            parameters = {**given, "use_sim_time": True}
            if name == "episode_node":
                parameters["output_dir"] = folder
            if name == "rerun_node":
                parameters["output_dir"] = folder / "rerun"
            if name == "record_node":
                parameters["output"] = folder / "bag"
            stack.enter_context(ros.process(module, "-r", f"__ns:={NAMESPACE}", **parameters))
        for name, _, _ in wave:
            # The executor of a node answers once its constructor has made all endpoints.
            ros.call(
                ListParameters,
                f"{NAMESPACE}/{name}/list_parameters",
                ListParameters.Request(),
                60.0,
                again_after=10.0,
            )
        found: Rights = {}

        def settled() -> bool:
            clock.publish(Clock(clock=Time(sec=1)))
            before = dict(found)
            found.update({name: endpoints(ros, name) for name, _, _ in wave})
            ros.spin_for(0.5)
            published = {name for kind, name in set().union(*found.values()) if kind == "publish"}
            # A recorder listens to a topic once it has seen a publisher of it.
            recorded = all(
                {name for kind, name in found[recorder] if kind == "subscribe"}
                >= published & topics
                for recorder, topics in RECORDERS.items()
            )
            # Offered once an episode has begun.
            offered = not gazebo or Right("reply", "gazebo_pusht/reset") in found["gazebo_pusht"]
            return before == found and all(found.values()) and recorded and offered

        ros.wait_until(settled, 30.0, "the graph to come to rest")
    ros.close()
    return found


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Rights:
    """The rights that the running nodes make use of."""
    pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
    rights: Rights = defaultdict(set)
    for wave in WAVES:
        for name, found in run(wave, tmp_path_factory.mktemp("episode")).items():
            rights[name] |= found
    return rights


def test_every_endpoint_of_every_node_is_allowed(used: Rights) -> None:
    allowed = policy()
    excess = {node: used[node] - allowed.get(node, set()) for node in used}
    assert {node: sorted(rights) for node, rights in excess.items() if rights} == {}


def test_every_right_is_used(used: Rights) -> None:
    allowed = policy()
    assert set(used) == set(allowed) - PEOPLE - OTHERS
    idle = {node: allowed[node] - used[node] for node in used}
    assert {node: sorted(rights) for node, rights in idle.items() if rights} == {}
