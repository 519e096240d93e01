"""Signs of life: who is silent, and what a frozen or deactivated node sounds like."""

from __future__ import annotations

import math
import signal
import time

import pytest

from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.safety.heartbeats import Heartbeats
from worldforge_ros.safety.reasons import ReasonCode

NAMES = ("planner_node", "policy_node")


def test_a_node_that_was_never_heard_is_missing_from_the_start() -> None:
    missing = Heartbeats(NAMES, 0.5).missing(0.0)
    assert [item.code for item in missing] == [ReasonCode.HEARTBEAT_LOST] * 2
    assert "planner_node is absent, never heard" in missing[0].message
    assert "policy_node" in missing[1].message


def test_silence_longer_than_the_timeout_names_the_node_and_the_age() -> None:
    beats = Heartbeats(NAMES, 0.5)
    beats.beat("planner_node", 10.0)
    beats.beat("policy_node", 10.25)
    assert beats.missing(10.5) == []
    (lost,) = beats.missing(10.75)
    assert lost.code is ReasonCode.HEARTBEAT_LOST
    assert lost.message == "heartbeat of planner_node is 0.75 s old; expected at most 0.5 s old"
    beats.beat("planner_node", 10.75)
    assert beats.missing(10.75) == []


def test_nodes_that_are_not_listed_do_not_count_and_are_not_kept() -> None:
    beats = Heartbeats(("planner_node",), 0.5)
    beats.beat("planner_node", 1.0)
    for number in range(1000):
        beats.beat(f"stranger_{number}", 1.0)
    assert beats.missing(1.0) == []
    assert [item.message.split()[2] for item in beats.missing(9.0)] == ["planner_node"]
    assert len(vars(beats)["_last"]) == 1


def test_an_empty_list_switches_the_check_off() -> None:
    assert Heartbeats((), 0.5).missing(1e9) == []


@pytest.mark.parametrize(
    ("names", "timeout"),
    [
        (("a", "a"), 0.5),
        (("",), 0.5),
        (("a",), 0.0),
        (("a",), -1.0),
        (("a",), math.nan),
        (("a",), math.inf),
    ],
)
def test_a_setting_that_would_hide_a_loss_is_refused(
    names: tuple[str, ...], timeout: float
) -> None:
    with pytest.raises(WorldForgeError) as caught:
        Heartbeats(names, timeout)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


# Over DDS; about 15 s.


def test_a_frozen_planner_falls_silent_and_comes_back() -> None:
    pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
    from ros_support import Ros

    from worldforge_ros.msg import Heartbeat
    from worldforge_ros.ros import convert, qos

    ros = Ros()
    try:
        seen: list[Heartbeat] = ros.record(Heartbeat, "heartbeat", qos.HEARTBEAT)
        with ros.process("planner_node") as planner:
            ros.wait_until(lambda: seen, 30.0, "first heartbeat")
            seen.clear()
            began = time.monotonic()
            ros.wait_until(lambda: len(seen) >= 20, 10.0, "20 heartbeats")
            # 10 Hz, and a machine under load may lose some of them.
            assert 1.5 < time.monotonic() - began < 5.0
            assert {item.node for item in seen} == {"planner_node"}
            age = ros.node.get_clock().now().nanoseconds - convert.stamp_to_ns(
                seen[-1].header.stamp
            )
            assert 0 <= age < 1_000_000_000

            planner.process.send_signal(signal.SIGSTOP)
            ros.spin_for(0.3)
            seen.clear()
            ros.spin_for(0.7)
            assert seen == []

            planner.process.send_signal(signal.SIGCONT)
            ros.wait_until(lambda: len(seen) >= 3, 5.0, "heartbeats of the planner again")
            assert planner.stop()[0] == 0
    finally:
        ros.close()


def test_a_policy_node_beats_while_it_is_active_only() -> None:
    pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from ros_support import Ros

    from worldforge_ros.msg import Heartbeat
    from worldforge_ros.ros import qos

    ros = Ros()
    try:
        seen: list[Heartbeat] = ros.record(Heartbeat, "heartbeat", qos.HEARTBEAT)

        def change(transition: int) -> None:
            request = ChangeState.Request(transition=Transition(id=transition))
            assert ros.call(ChangeState, "policy_node/change_state", request, 60.0).success

        with ros.process("faulty_policy_node.py", autostart=False) as policy:
            change(Transition.TRANSITION_CONFIGURE)
            ros.wait_until(lambda: ros.node.count_publishers("heartbeat"), what="discovery")
            ros.spin_for(0.4)
            assert seen == []
            for end in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVE_SHUTDOWN):
                change(Transition.TRANSITION_ACTIVATE)
                ros.wait_until(lambda: len(seen) >= 2, 5.0, "heartbeats of an active node")
                assert seen[-1].node == "policy_node"
                change(end)
                ros.spin_for(0.2)
                seen.clear()
                ros.spin_for(0.4)
                assert seen == []
            assert policy.stop()[0] == 0
    finally:
        ros.close()
