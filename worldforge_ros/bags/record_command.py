"""Write what the nodes see, plan and do to an MCAP bag, until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worldforge_ros.bags.recorder import Recorded
from worldforge_ros.bags.writer import COMPRESSIONS, check_free, read_notes
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.sourced import ros_module

MEGA = 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--embodiment", default="pusht", help="name or path of the embodiment file")
    parser.add_argument("--out", type=Path, help="bag folder to make (bags/<time>)")
    parser.add_argument(
        "--duration", type=float, default=0.0, help="seconds of wall time; 0: until Ctrl-C"
    )
    parser.add_argument("--max-gb", type=float, default=20.0, help="size at which it ends, GB")
    parser.add_argument("--namespace", default="/", help="ROS namespace of the nodes")
    parser.add_argument(
        "--compression", choices=COMPRESSIONS, default="zstd", help="of the bag's chunks"
    )
    parser.add_argument(
        "--cameras",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="record the cameras; without, pictures are only in observation",
    )
    parser.add_argument(
        "--sim-time",
        action="store_true",
        help="put messages in time by /clock, as nodes with use_sim_time do",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was recorded here")


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 when the bag is whole and holds something.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for options or a folder that cannot be used,
        ``EMBODIMENT_...``, ``DEPENDENCY_MISSING`` without ROS.
    """
    from worldforge_ros.bringup import NodeSpec
    from worldforge_ros.recording.progress import ProgressLine
    from worldforge_ros.supervisor import node_command

    for name, value in (("--duration", args.duration), ("--max-gb", args.max_gb)):
        if not 0.0 <= value < float("inf"):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT, name, found=value, expected="a number of at least 0"
            )
    load_embodiment(args.embodiment)
    out = args.out or Path("bags") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    check_free(out)
    record_node = ros_module("worldforge_ros.nodes.record_node")
    spec = NodeSpec(
        "record_node",
        "record_node",
        f"/{args.namespace.strip('/')}",
        parameters={
            "embodiment": args.embodiment,
            "output": str(out),
            "cameras": args.cameras,
            "compression": args.compression,
            "max_gb": args.max_gb,
            "use_sim_time": args.sim_time,
        },
    )
    argv = node_command(spec).argv
    line = ProgressLine(sys.stdout, every=5.0)

    def show(state: Recorded) -> None:
        line.show(
            f"{state.messages} messages of {sum(map(bool, state.counts.values()))} topics   "
            f"{state.bytes / MEGA:.1f} MB   {sum(state.dropped.values())} dropped"
        )

    arguments = list(argv[argv.index("--ros-args") :])
    status = int(record_node.record(arguments, args.duration, show))
    line.done()
    if not (out / "metadata.yaml").is_file():
        return status
    contents = read_contents(out)
    print(contents_text(contents))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    return status or int(not contents["complete"])


def read_contents(path: Path) -> dict[str, Any]:
    """What a recorded bag holds: ``bag``, ``messages``, ``duration_s``, ``size_bytes``,
    ``topics[]`` of topic, type and count, ``dropped`` by topic, ``notes``, and ``complete``:
    nothing was dropped and there is something.

    :raises WorldForgeError: as :meth:`worldforge_ros.bags.reader.Bag.open`, except that an empty
        bag is one without topics.
    """
    from worldforge_ros.bags.reader import Bag

    notes = read_notes(path)
    dropped = json.loads(notes.pop("dropped", "{}"))
    result: dict[str, Any] = {
        "bag": str(path),
        "messages": 0,
        "duration_s": 0.0,
        "size_bytes": 0,
        "topics": [],
        "dropped": dropped,
        "notes": notes,
        "complete": False,
    }
    try:
        bag = Bag.open(path)
    except WorldForgeError as error:
        if error.code is ErrorCode.BAG_EMPTY:
            return result
        raise
    with bag:
        topics = [
            {"topic": item.name, "type": item.type, "count": item.count} for item in bag.topics
        ]
        return {
            **result,
            "messages": bag.messages,
            "duration_s": round((bag.end - bag.start) / 1e9, 3),
            "size_bytes": bag.size_bytes,
            "topics": topics,
            "complete": bag.complete and not dropped,
        }


def contents_text(contents: dict[str, Any]) -> str:
    """The same for a terminal."""
    size = f"{contents['size_bytes'] / MEGA:.1f} MB"
    seconds = f"{contents['duration_s']:.1f} s"
    lines = [f"bag {contents['bag']}: {contents['messages']} messages in {seconds}, {size}"]
    lines += [f"{row['count']:>8}  {row['topic']}  ({row['type']})" for row in contents["topics"]]
    lines += [f"{count:>8}  missing of {topic}" for topic, count in contents["dropped"].items()]
    if not contents["complete"]:
        what = (
            "messages are missing"
            if contents["messages"]
            else "it is empty: nothing that there is to record was published in this ROS_DOMAIN_ID "
            "and --namespace; `worldforge demo` prints its domain"
        )
        lines.append(f"{ErrorCode.RECORDING_INCOMPLETE}: {what}")
    return "\n".join(lines)
