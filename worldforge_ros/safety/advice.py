"""What each reason code means to a person, why it probably came, and what to do.

The table of docs/safety.md is written from here by ``scripts/reference.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from worldforge_ros.safety.reasons import ReasonCode

_TABLE = re.compile(r"^\| Code \| Meaning \|.*(?:\n\|.*)*", re.MULTILINE)


@dataclass(frozen=True)
class Advice:
    """Three plain sentences about a code; Markdown, without tables and line breaks."""

    meaning: str
    cause: str
    action: str


ADVICE: dict[ReasonCode, Advice] = {
    ReasonCode.NOT_ARMED: Advice(
        "The gate is disarmed.",
        "Nobody called `enable`.",
        "Call `safety_gate/enable` with true.",
    ),
    ReasonCode.STOPPED: Advice(
        "The gate is stopped.",
        "An earlier stop or fault; the status tells which.",
        "Remove the cause, then `safety_gate/rearm`.",
    ),
    ReasonCode.MALFORMED: Advice(
        "The message contradicts itself or cannot be read.",
        "Length of `data` is not the product of `shape`, or bytes of another type.",
        "Mend the publisher.",
    ),
    ReasonCode.SHAPE_MISMATCH: Advice(
        "Actions are not (horizon, joints).",
        "Planner of another robot.",
        "Give both nodes the same embodiment.",
    ),
    ReasonCode.HORIZON_INVALID: Advice(
        "No actions, or too many.",
        "Empty plan, or a horizon above `max_horizon`.",
        "Mend the plan or raise the parameter.",
    ),
    ReasonCode.NOT_FINITE: Advice(
        "An action is NaN or infinite.",
        "A model diverged.",
        "Look at the policy's input and statistics.",
    ),
    ReasonCode.JOINT_NAMES_MISMATCH: Advice(
        "Joint names are not exactly the robot's.",
        "Wrong embodiment, or a joint named twice.",
        "Compare with the embodiment file.",
    ),
    ReasonCode.STEP_INVALID: Advice(
        "Time between actions is 0, negative or above `max_step`.",
        "`step` not filled in.",
        "Fill it in.",
    ),
    ReasonCode.MESSAGE_TOO_LARGE: Advice(
        "The message has more bytes than any chunk of this robot can have.",
        "A wrong publisher, or a horizon far above `max_horizon`.",
        "Look who publishes: `ros2 topic info -v action_chunk/proposed`.",
    ),
    ReasonCode.EMBODIMENT_MISMATCH: Advice(
        "The chunk is for another robot.",
        "Nodes started with different embodiments.",
        "Start them alike.",
    ),
    ReasonCode.SOURCE_NOT_ALLOWED: Advice(
        "The source is not on the list.",
        "`allowed_sources` is set.",
        "Add the source or leave the list empty.",
    ),
    ReasonCode.EPOCH_MISMATCH: Advice(
        "Planned before the last rearm or disarming.",
        "A plan in flight during a stop.",
        "Nothing; the next plan carries the new epoch.",
    ),
    ReasonCode.SEQUENCE_NOT_INCREASING: Advice(
        "Not newer than the last approved chunk.",
        "Repeated or overtaken message; a restarted planner.",
        "After a planner restart, disarm and arm.",
    ),
    ReasonCode.MODEL_MISMATCH: Advice(
        "The chunk was made by other models than the gate is set to.",
        "A checkpoint was changed, or `model_id` was not.",
        "Load the expected checkpoint, or set the gate's `model_id` to the new one.",
    ),
    ReasonCode.NO_PUBLISHER: Advice(
        "Nobody proposes chunks.",
        "The planner is not running, or its topic has another name.",
        "Start the planner; compare `ros2 topic info -v action_chunk/proposed`.",
    ),
    ReasonCode.MULTIPLE_PUBLISHERS: Advice(
        "Several nodes propose chunks.",
        "Two planners run, or one was started again while the old one lives.",
        "Stop all but one.",
    ),
    ReasonCode.CHUNK_STAMP_UNSET: Advice(
        "The chunk has no stamp.",
        "`header.stamp` not filled in.",
        "Fill it in.",
    ),
    ReasonCode.CHUNK_IN_FUTURE: Advice(
        "It begins too far ahead.",
        "Clocks differ; `use_sim_time` on one side only.",
        "Synchronise the clocks.",
    ),
    ReasonCode.CHUNK_TOO_OLD: Advice(
        "Its first action was due long ago.",
        "Planning takes longer than `max_chunk_age`.",
        "Fewer candidates, or raise the parameter.",
    ),
    ReasonCode.CHUNK_OVER: Advice(
        "All its actions are past.",
        "Planning takes longer than the chunk lasts.",
        "Faster planning or a longer horizon.",
    ),
    ReasonCode.OBSERVATION_STAMP_UNSET: Advice(
        "It does not tell which observation it is based on.",
        "Field not filled in.",
        "Fill it in.",
    ),
    ReasonCode.OBSERVATION_IN_FUTURE: Advice(
        "Its observation lies ahead of now.",
        "Camera clock ahead.",
        "Synchronise the clocks.",
    ),
    ReasonCode.OBSERVATION_TOO_OLD: Advice(
        "Its observation is too old to act on.",
        "Camera or planner too slow.",
        "Look at the latencies in `plan_report`.",
    ),
    ReasonCode.POSITION_LIMIT: Advice(
        "A remaining set-point lies outside the limits.",
        "Policy leaves the workspace.",
        "Check units and statistics of the policy.",
    ),
    ReasonCode.POSITION_MARGIN: Advice(
        "A remaining set-point is inside the limits, but closer to one than `position_margin`.",
        "The policy works at the edge of a joint's range.",
        "Move the task into the range, or lower the margin.",
    ),
    ReasonCode.VELOCITY_LIMIT: Advice(
        "Two actions are too far apart.",
        "Jerky policy, or wrong step.",
        "Check the policy's step; smooth the chunk.",
    ),
    ReasonCode.SEAM_COMMANDED: Advice(
        "The first action is too far from the present set-point.",
        "Plan starts elsewhere than the robot is sent.",
        "Plan from the chunk that is executing.",
    ),
    ReasonCode.SEAM_MEASURED: Advice(
        "The first action is too far from where the robot is.",
        "Planned from an old observation.",
        "Plan from a newer observation.",
    ),
    ReasonCode.SUSTAINED_VELOCITY: Advice(
        "Recent chunks together would be too fast.",
        "Replanning in full steps faster than the step.",
        "Replan less often or in smaller steps.",
    ),
    ReasonCode.ACCELERATION_LIMIT: Advice(
        "The velocity changes too fast between two steps, or from what the robot does now.",
        "Jerky policy, or a plan that begins with a full step from rest.",
        "Smooth the chunk, blend the seam (`seam:=blend`), or check `max_acceleration`.",
    ),
    ReasonCode.JERK_LIMIT: Advice(
        "The acceleration changes too fast.",
        "Jerky policy or a seam between two plans.",
        "Smooth the chunk, blend the seam, or check `max_jerk`.",
    ),
    ReasonCode.STOPPING_DISTANCE: Advice(
        "At some set-point the robot would be too fast to stop before a position limit.",
        "The chunk runs towards a limit at speed.",
        "Slow down near limits; check `max_deceleration`.",
    ),
    ReasonCode.WORKSPACE_BOX: Advice(
        "An end effector would leave the workspace box.",
        "The policy leaves the workspace, or box and robot use different frames.",
        "Look at `safety_gate/markers`; correct the plan or the box.",
    ),
    ReasonCode.WORKSPACE_POLYGON: Advice(
        "An end effector would leave the workspace polygon.",
        "The policy leaves the workspace, or the polygon's corners are wrong.",
        "Look at `safety_gate/markers`; correct the plan or the polygon.",
    ),
    ReasonCode.KEEP_OUT: Advice(
        "An end effector would enter a keep-out box.",
        "The plan passes through an obstacle.",
        "Look at `safety_gate/markers`; plan around the box or move it.",
    ),
    ReasonCode.ARM_DISTANCE: Advice(
        "Two arms would come too close to each other.",
        "The policy brings the grippers together.",
        "Keep the arms apart, or lower `min_arm_distance` if the task needs it.",
    ),
    ReasonCode.CHUNK_RATE: Advice(
        "Chunks arrive faster than `max_chunk_rate`.",
        "A planner in a loop without a pause, or a flood of messages.",
        "Raise the planner's `replan_period`; look who publishes.",
    ),
    ReasonCode.TOO_MANY_REJECTIONS: Advice(
        "`max_rejections` chunks were rejected within `rejection_window`; the gate stopped.",
        "The planner keeps proposing what cannot be done.",
        "Look at the counts by code, remove the most frequent cause, then rearm.",
    ),
    ReasonCode.COST_TOO_HIGH: Advice(
        "The world model finds even the chosen chunk too expensive, or it was not scored.",
        "A scene that the models do not know, or `max_cost` too low.",
        "Look at the scene and the goal; compare `max_cost` with the costs in `plan_report`.",
    ),
    ReasonCode.MARGIN_TOO_SMALL: Advice(
        "The chosen chunk is hardly better than the runner-up, or there was none.",
        "The world model cannot tell the candidates apart.",
        "Nothing if it passes; else compare `min_margin` with the margins in `plan_report`.",
    ),
    ReasonCode.LIMITS_INCOMPLETE: Advice(
        "A joint lacks a limit.",
        "Embodiment file, URDF and `joint_limits` leave it out.",
        "Add it; the message names joint and field.",
    ),
    ReasonCode.CLOCK_NOT_RUNNING: Advice(
        "ROS time is 0.",
        "`use_sim_time` without a publisher on `/clock`.",
        "Start the simulator or turn it off.",
    ),
    ReasonCode.MOVING: Advice(
        "A joint moves at arming.",
        "The robot is being moved, or coasts.",
        "Wait until it rests.",
    ),
    ReasonCode.JOINT_STATE_MISSING: Advice(
        "No joint state has arrived.",
        "Driver not running; name or QoS differs.",
        "`ros2 topic info -v joint_states`.",
    ),
    ReasonCode.JOINT_STATE_STALE: Advice(
        "Joint states fell silent, or their stamp stands still.",
        "Driver died or hangs.",
        "Restart the driver, then rearm.",
    ),
    ReasonCode.JOINT_STATE_INVALID: Advice(
        "A joint state cannot be used.",
        "NaN, missing joint, no velocity, no stamp.",
        "Mend the driver; the message names the field.",
    ),
    ReasonCode.JOINT_STATE_IN_FUTURE: Advice(
        "A joint state is stamped ahead of now.",
        "The driver's clock is ahead; `use_sim_time` on one side only.",
        "Synchronise the clocks, then rearm.",
    ),
    ReasonCode.MEASURED_POSITION_LIMIT: Advice(
        "A joint is measured outside its limits.",
        "Overshoot, or wrong limits or zero.",
        "Move it back by hand, then rearm.",
    ),
    ReasonCode.TRACKING_ERROR: Advice(
        "The robot does not follow its set-points.",
        "Obstacle, collision, too weak a controller.",
        "Clear the robot, then rearm.",
    ),
    ReasonCode.HOLD_TIMEOUT: Advice(
        "A hold lasted longer than `stop_after_hold`.",
        "The planner died, or all its chunks were refused.",
        "Look at the last verdict, restart the planner, then rearm.",
    ),
    ReasonCode.OPEN_LOOP_TOO_LONG: Advice(
        "A chunk was still executing `max_open_loop` after the observation behind it.",
        "No newer plan came: the camera, a model or the planner is too slow.",
        "Look at the latencies in `plan_report`; shorten the chunk or plan faster.",
    ),
    ReasonCode.SET_POINT_LATE: Advice(
        "Several actions became due between two ticks; the robot holds instead of catching up.",
        "The gate's thread was kept from running, or ROS time leapt ahead.",
        "Look at `control_period_ms_max` in `/diagnostics` and at the clock; relieve the machine.",
    ),
    ReasonCode.SURPRISED: Advice(
        "The world did not do what the world model expected, or nothing is known about that.",
        "Something was moved, a picture is wrong, or nobody publishes on `surprise_topic`.",
        "Look at the scene and at `score_node`'s diagnostics; the gate goes on by itself with a "
        "chunk planned from a later observation.",
    ),
    ReasonCode.HEARTBEAT_LOST: Advice(
        "A node that must beat is silent or was never heard.",
        "It died, hangs, is not active, or has another name than `heartbeats` says.",
        "Restart or activate the node that the message names; rearm if the gate stopped.",
    ),
    ReasonCode.CLOCK_JUMPED_BACK: Advice(
        "ROS time went back; the chunk was dropped and the robot holds.",
        "Simulator reset, or the clock was set.",
        "Nothing; plans with new stamps are accepted.",
    ),
    ReasonCode.PROTECTIVE_STOP: Advice(
        "`safety_gate/protective_stop` is true.",
        "Somebody pressed it.",
        "Release it, then rearm.",
    ),
    ReasonCode.PROTECTIVE_STOP_LOST: Advice(
        "The publisher of `safety_gate/protective_stop` is gone, or its lease ran out.",
        "The stop's node died, or its cable or network is down.",
        "Bring it back and let it say false, then rearm.",
    ),
    ReasonCode.STOP_REQUESTED: Advice(
        "`safety_gate/stop` was called.",
        "Somebody called it.",
        "`safety_gate/rearm`.",
    ),
    ReasonCode.SET_POINT_INVALID: Advice(
        "The gate's own set-point failed its last check and was not sent.",
        "A defect in the gate, or a joint state that changed in an impossible way.",
        "Keep the robot still and report it with the log.",
    ),
    ReasonCode.INTERNAL_ERROR: Advice(
        "An exception in the gate.",
        "A defect.",
        "Report it with the traceback in the log.",
    ),
}


def advice_for(code: str) -> Advice | None:
    """The advice for ``code``; None for one of another release."""
    return ADVICE[ReasonCode(code)] if code in ReasonCode.__members__ else None


def table() -> str:
    """All codes in the order of :class:`ReasonCode`: a Markdown table without a last newline."""
    lines = ["| Code | Meaning | Likely cause | What to do |", "|---|---|---|---|"]
    for code in ReasonCode:
        advice = ADVICE[code]
        lines.append(f"| `{code}` | {advice.meaning} | {advice.cause} | {advice.action} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """``page`` with its table of reason codes, from the header to the next empty line, as it must
    be.

    :raises ValueError: when the page has no such table, or several.
    """
    tables = _TABLE.findall(page)
    if len(tables) != 1:
        raise ValueError(f"tables of reason codes are {len(tables)}; expected one")
    return page.replace(tables[0], table())
