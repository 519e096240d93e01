"""What each error code means to a person and what to do about it.

``docs/error_codes.md`` is written from here by ``scripts/reference.py``. Codes of the safety gate
have theirs in :mod:`worldforge_ros.safety.advice`.
"""

from __future__ import annotations

from dataclasses import dataclass

from worldforge_ros.errors import ErrorCode


@dataclass(frozen=True)
class ErrorAdvice:
    """Two plain sentences about a code; Markdown, without tables and line breaks."""

    meaning: str
    action: str


ERROR_ADVICE: dict[ErrorCode, ErrorAdvice] = {
    ErrorCode.INTERNAL: ErrorAdvice(
        "Something failed that no other code foresees, or a node of another release answered.",
        "Look at the log above it; it is a defect if versions agree.",
    ),
    ErrorCode.INVALID_ARGUMENT: ErrorAdvice(
        "An argument, option, parameter or field has a value that it cannot have.",
        "The message names it, what was found and what was expected.",
    ),
    ErrorCode.MESSAGE_TOO_LARGE: ErrorAdvice(
        "A message to the gate has more bytes than it may have; it was not read.",
        "Find the publisher: `ros2 topic info -v` on the topic that the message names.",
    ),
    ErrorCode.MESSAGE_MALFORMED: ErrorAdvice(
        "Bytes are not a message of the expected type.",
        "Build publisher and receiver from the same message definitions; a bag may be damaged.",
    ),
    ErrorCode.EMBODIMENT_UNKNOWN: ErrorAdvice(
        "No embodiment has this name, and no file this path.",
        "Give one of the names that the message lists, or the path of a YAML file.",
    ),
    ErrorCode.EMBODIMENT_INVALID: ErrorAdvice(
        "The embodiment file has a field that is missing, unknown, still `TODO` or contradictory.",
        "Mend the field; `worldforge embodiment check FILE` shows all of them.",
    ),
    ErrorCode.EMBODIMENT_MISMATCH: ErrorAdvice(
        "Two things are for different robots: file and URDF, checkpoint, message or request.",
        "Start everything with the same embodiment, the one that the checkpoint was trained for.",
    ),
    ErrorCode.URDF_INVALID: ErrorAdvice(
        "The URDF cannot be read, or a value in it cannot be used.",
        "Mend what the message names; expand xacro files first.",
    ),
    ErrorCode.CAMERA_MISSING: ErrorAdvice(
        "No picture of a camera that the embodiment file names.",
        "Check the camera's topic and remapping; set `sensor_reliability` to `best_effort` if the "
        "driver publishes so.",
    ),
    ErrorCode.CAMERA_STALE: ErrorAdvice(
        "The newest picture is too old, or two cameras' pictures are too far apart.",
        "Look at the camera's rate, at the clock it stamps with and at the load of the machine.",
    ),
    ErrorCode.JOINT_STATE_MISSING: ErrorAdvice(
        "No joint state has arrived.",
        "Check the driver and the topic that the message names.",
    ),
    ErrorCode.JOINT_STATE_STALE: ErrorAdvice(
        "The joint state is too old, or too far from the picture's stamp.",
        "Publish joint states faster; stamp pictures at capture, with the same clock.",
    ),
    ErrorCode.JOINT_NAMES_MISMATCH: ErrorAdvice(
        "Joints are missing, unknown, twice there or in another order.",
        "Compare with the joints of the embodiment file.",
    ),
    ErrorCode.OBSERVATION_MISSING: ErrorAdvice(
        "No observation has been received.",
        "Is `observation_node` running? Its log and `/diagnostics` say what it lacks.",
    ),
    ErrorCode.OBSERVATION_STALE: ErrorAdvice(
        "The newest observation is older than the embodiment's `max_age`.",
        "Look at the cameras and at `observation_node`; clocks of two hosts may differ.",
    ),
    ErrorCode.OBSERVATION_OUT_OF_ORDER: ErrorAdvice(
        "A picture or a joint state is older than the one before it, or has the same stamp.",
        "One publisher for each topic; after a jump of the clock it ends by itself.",
    ),
    ErrorCode.HISTORY_TOO_SHORT: ErrorAdvice(
        "Too few observations at the distance in time that the model looks at.",
        "Normal for the first moments; else pictures are lost, or come too slowly.",
    ),
    ErrorCode.STAMP_INVALID: ErrorAdvice(
        "A stamp is 0, or lies ahead of now.",
        "Stamp messages; use the same clock and the same `use_sim_time` everywhere.",
    ),
    ErrorCode.IMAGE_ENCODING_UNSUPPORTED: ErrorAdvice(
        "The picture's encoding is unknown.",
        "Publish an encoding that the message lists.",
    ),
    ErrorCode.IMAGE_SIZE_MISMATCH: ErrorAdvice(
        "A picture is not as large as the embodiment file says.",
        "Mend the file or the camera; nothing is resized in silence.",
    ),
    ErrorCode.IMAGE_DATA_INVALID: ErrorAdvice(
        "The picture's bytes are not those of its size, or cannot be decoded.",
        "Look at the camera driver; `step` times height must be the length of `data`.",
    ),
    ErrorCode.TENSOR_SHAPE_MISMATCH: ErrorAdvice(
        "An array has other dimensions than expected.",
        "Compare with the shapes in [interfaces.md](interfaces.md).",
    ),
    ErrorCode.TENSOR_DATA_LENGTH: ErrorAdvice(
        "The length of `data` is not the product of `shape`.",
        "Mend the sender.",
    ),
    ErrorCode.TENSOR_NOT_FINITE: ErrorAdvice(
        "An array holds NaN or infinity.",
        "Look at the sender; a policy that gives it was fed something it does not know.",
    ),
    ErrorCode.BATCH_SIZE_UNSUPPORTED: ErrorAdvice(
        "Candidates have a first dimension other than 1.",
        "One observation a request; candidates go into the second dimension.",
    ),
    ErrorCode.NO_CANDIDATES: ErrorAdvice(
        "A request holds or asks for no candidate, or none is left.",
        "Ask for at least 1.",
    ),
    ErrorCode.NO_REACHABLE_CANDIDATE: ErrorAdvice(
        "Every candidate breaks a limit of a joint, from the present set-point on; the robot goes "
        "on with its chunk, then holds and starts anew.",
        "Lower the latency or `replan_period`; where a policy begins off the resting pose, set "
        "`seam` to `blend`; a large gap is a wrong unit, sign or zero.",
    ),
    ErrorCode.TOO_MANY_CANDIDATES: ErrorAdvice(
        "A request has more candidates than the node's `max_candidates`.",
        "Ask for fewer, or raise the parameter.",
    ),
    ErrorCode.CANDIDATE_STALE: ErrorAdvice(
        "A chunk on `action_chunk/candidate` was older than `supplied_max_age` on arrival.",
        "Supply it sooner, or raise the parameter.",
    ),
    ErrorCode.STEP_MISMATCH: ErrorAdvice(
        "A supplied chunk has another time between two actions than the other candidates.",
        "Use the embodiment's policy step.",
    ),
    ErrorCode.ACTION_DIM_MISMATCH: ErrorAdvice(
        "An action has another number of values than the robot has joints.",
        "Use the embodiment file that the policy was trained for.",
    ),
    ErrorCode.HORIZON_INVALID: ErrorAdvice(
        "More actions are asked for or given than is possible, or none.",
        "The message has the bound.",
    ),
    ErrorCode.HORIZON_BEYOND_DRIFT: ErrorAdvice(
        "Candidates are longer than the world model is believed; only the beginning is scored.",
        "A warning. See [drift.md](drift.md).",
    ),
    ErrorCode.HORIZON_NOT_WHOLE_BLOCKS: ErrorAdvice(
        "The horizon is no whole number of the world model's blocks.",
        "Make `horizon` a multiple of the embodiment's block.",
    ),
    ErrorCode.ACTION_HISTORY_INVALID: ErrorAdvice(
        "The actions between the frames of the history are missing, of another shape or not "
        "finite.",
        "Give one for every step between the frames; see [scoring.md](scoring.md).",
    ),
    ErrorCode.CHECKPOINT_MISSING: ErrorAdvice(
        "No checkpoint at that path, or no snapshot of a hub id.",
        "`policy_path` and `world_model` take a folder or `package://worldforge_ros/...`.",
    ),
    ErrorCode.CHECKPOINT_INVALID: ErrorAdvice(
        "A checkpoint cannot be read, or its weights are not exactly the model's.",
        "Compare hashes with the source; the message names the file and the field.",
    ),
    ErrorCode.CHECKPOINT_UNTRUSTED: ErrorAdvice(
        "Loading would run code: a pickle without its hash or with another one, or a class or "
        "repository that a checkpoint brings along.",
        "If you trust the file, give its `sha256`; see [security.md](security.md).",
    ),
    ErrorCode.DEPENDENCY_MISSING: ErrorAdvice(
        "A Python package that this needs is not installed, or is of another version.",
        "Install what the message names, then look again with `worldforge doctor`.",
    ),
    ErrorCode.DEVICE_UNAVAILABLE: ErrorAdvice(
        "Torch or the backend cannot use this device here.",
        "Give one that the message lists.",
    ),
    ErrorCode.MODEL_NOT_READY: ErrorAdvice(
        "The node is not active yet: its model is loading, failed to load, or was deactivated.",
        "Wait; else its log and `/diagnostics` say what is wrong, and `ros2 lifecycle` activates.",
    ),
    ErrorCode.MODEL_BUSY: ErrorAdvice(
        "Another request is being answered.",
        "One request at a time; ask again.",
    ),
    ErrorCode.MODEL_FAILED: ErrorAdvice(
        "The model raised an error, or gave nothing that can be used.",
        "The message has the error; it is often an input of another size or the memory.",
    ),
    ErrorCode.POLICY_TYPE_UNKNOWN: ErrorAdvice(
        "The installed LeRobot has no policy of this type.",
        "Install the LeRobot that it was trained with; the message lists the types.",
    ),
    ErrorCode.POLICY_TYPE_MISMATCH: ErrorAdvice(
        "The checkpoint is of another type than `policy_type` says.",
        "Leave `policy_type` empty, or give the other checkpoint.",
    ),
    ErrorCode.POLICY_NOT_MIGRATED: ErrorAdvice(
        "A checkpoint of LeRobot before 0.4, without its normalisation.",
        "`worldforge migrate-policy OLD NEW`; see [policies.md](policies.md).",
    ),
    ErrorCode.POLICY_STATISTICS_MISSING: ErrorAdvice(
        "A feature is declared normalised, and there are no statistics for it.",
        "Export the checkpoint with its processors; a wrong guess would never fail.",
    ),
    ErrorCode.POLICY_FEATURE_MISMATCH: ErrorAdvice(
        "The policy has an input that the embodiment file does not feed, or in another shape.",
        "`worldforge embodiment check FILE --policy CHECKPOINT` shows every input.",
    ),
    ErrorCode.POLICY_MODE_UNSUPPORTED: ErrorAdvice(
        "The policy cannot answer in this mode.",
        "Leave `mode` empty.",
    ),
    ErrorCode.DETERMINISTIC_POLICY: ErrorAdvice(
        "More than one candidate was asked of a policy that gives one answer.",
        "Run it with `planner:=first num_candidates:=1`.",
    ),
    ErrorCode.ACTION_STATISTICS_MISSING: ErrorAdvice(
        "The world model does not say how its actions were normalised.",
        "Give mean and std of its training actions; see [scoring.md](scoring.md).",
    ),
    ErrorCode.GOAL_MISSING: ErrorAdvice(
        "There is no goal picture.",
        "Publish one on `goal_image`, transient local, of the world model's camera and size.",
    ),
    ErrorCode.GOAL_STALE: ErrorAdvice(
        "The goal picture is older than `max_goal_age`.",
        "Publish it again, or set the parameter to 0.",
    ),
    ErrorCode.OBJECTIVE_UNKNOWN: ErrorAdvice(
        "The world model has no objective of this name.",
        "Leave it empty, or give one that the message lists.",
    ),
    ErrorCode.COSTS_INVALID: ErrorAdvice(
        "The world model gave no usable cost for any candidate.",
        "Look at goal, pictures and candidates; one of them is unlike the training data.",
    ),
    ErrorCode.PROPOSE_DEADLINE_MISSED: ErrorAdvice(
        "The policy did not answer within `propose_timeout`.",
        "Is the process alive? Else fewer candidates, a GPU, or a longer timeout.",
    ),
    ErrorCode.SCORE_DEADLINE_MISSED: ErrorAdvice(
        "The world model did not answer within `score_timeout`.",
        "Is the process alive? Else fewer candidates, a GPU, a faster backend or a longer timeout.",
    ),
    ErrorCode.PROPOSE_UNAVAILABLE: ErrorAdvice(
        "Nobody offers the service `propose_actions`.",
        "Start `policy_node`; compare namespaces, `ROS_DOMAIN_ID` and the discovery range.",
    ),
    ErrorCode.SCORE_UNAVAILABLE: ErrorAdvice(
        "Nobody offers `score_candidates` or `refine_candidates`.",
        "Start `score_node`; compare namespaces, `ROS_DOMAIN_ID` and the discovery range.",
    ),
    ErrorCode.CHUNK_REJECTED: ErrorAdvice(
        "The gate refused a chunk.",
        "Its reason codes are in `safety_gate/status`; see [safety.md](safety.md#reason-codes).",
    ),
    ErrorCode.GATE_STOPPED: ErrorAdvice(
        "The gate is stopped.",
        "Read `reason` in `safety_gate/status`, remove the cause, then `safety_gate/rearm`.",
    ),
    ErrorCode.BAG_MISSING: ErrorAdvice(
        "No bag at that path.",
        "Give the folder with `metadata.yaml`, or an `.mcap` or `.db3` file.",
    ),
    ErrorCode.BAG_INVALID: ErrorAdvice(
        "A bag is damaged or was cut off.",
        "What can be read is read and said to be incomplete; else record again.",
    ),
    ErrorCode.BAG_EMPTY: ErrorAdvice(
        "Nothing can be read of a bag, or nothing in it is of use.",
        "Record again; see what a bag needs in [replay.md](replay.md).",
    ),
    ErrorCode.BAG_OUT_OF_ORDER: ErrorAdvice(
        "Messages of a bag are not in the order of their times.",
        "They are read in order of receive time; look at the clocks of the recording hosts.",
    ),
    ErrorCode.BAG_GAP: ErrorAdvice(
        "A topic of a bag is silent for much longer than usual.",
        "Look at the recorder's load, or at what happened then.",
    ),
    ErrorCode.TOPIC_MISSING: ErrorAdvice(
        "A bag has no topic of this name; the message lists what it holds.",
        "`--remap OURS:=THEIRS`, or `--namespace`.",
    ),
    ErrorCode.TOPIC_TYPE_MISMATCH: ErrorAdvice(
        "A topic of a bag is of another type.",
        "`--remap` another topic; the message lists names and types.",
    ),
    ErrorCode.DATASET_INVALID: ErrorAdvice(
        "A LeRobot data set does not fit the embodiment, or contradicts itself.",
        "The message names the field; see [datasets.md](datasets.md).",
    ),
    ErrorCode.RECORDING_INCOMPLETE: ErrorAdvice(
        "Messages are missing in a bag that was recorded.",
        "A faster disk, fewer topics (`cameras`), or a larger `queue_mb`.",
    ),
    ErrorCode.SIMULATION_UNAVAILABLE: ErrorAdvice(
        "A simulator's package, or what it draws with, is not there.",
        "Install what the message names; ALOHA needs an EGL library.",
    ),
    ErrorCode.CHILD_DIED: ErrorAdvice(
        "A process of the bring-up ended by itself; the others were stopped.",
        "Its last lines are printed with its name.",
    ),
    ErrorCode.EPISODE_INCOMPLETE: ErrorAdvice(
        "An episode did not begin or end as it has to.",
        "The message names what did not answer; the logs are in the folder `logs` of the run.",
    ),
}


def table() -> str:
    """All codes in the order of :class:`ErrorCode`: a Markdown table without a last newline."""
    lines = ["| Code | What is wrong | What to do |", "|---|---|---|"]
    for code in ErrorCode:
        advice = ERROR_ADVICE[code]
        lines.append(f"| `{code}` | {advice.meaning} | {advice.action} |")
    return "\n".join(lines)
