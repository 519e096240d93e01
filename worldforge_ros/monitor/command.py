"""Show the running stack live: topics, latencies, gate, candidates, surprise, nodes."""

from __future__ import annotations

import argparse
import math

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.sourced import ros_module

LONGEST = 3600.0
"""Seconds that an option may be."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--once", action="store_true", help="print one picture and exit")
    parser.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        help="with --once: seconds until it is printed, whatever has been heard by then; "
        "exit status 1 if nothing was",
    )
    parser.add_argument("--period", type=float, default=1.0, help="seconds between two pictures")
    parser.add_argument("--namespace", default="/", help="ROS namespace of the nodes")
    parser.add_argument(
        "--embodiment", default="pusht", help="name or path of the embodiment file, for its topics"
    )
    parser.add_argument(
        "--command-topic", default="", help="where the gate's set-points go (the gate's own topics)"
    )
    parser.add_argument(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="listen to cameras and observation; without, nothing large is sent here",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a line for each period"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command: 0, or with ``--once`` 1 when nothing was heard.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for options that cannot be used,
        ``EMBODIMENT_...``, ``DEPENDENCY_MISSING`` without ROS.
    """
    from worldforge_ros.embodiment import load_embodiment

    for name, value in (("--timeout", args.timeout), ("--period", args.period)):
        if not (math.isfinite(value) and 0.0 < value <= LONGEST):
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                name,
                found=value,
                expected=f"seconds above 0, at most {LONGEST:g}",
            )
    embodiment = load_embodiment(args.embodiment)
    top = ros_module("worldforge_ros.ros.top")
    return int(
        top.show(
            embodiment,
            once=args.once,
            as_json=args.json,
            timeout=args.timeout,
            period=args.period,
            namespace=args.namespace,
            command_topic=args.command_topic,
            pictures=args.pictures,
        )
    )
