"""Recorded bags to a LeRobot data set that the next policy can be trained on, and back.

worldforge export BAG... --to-lerobot DIR writes every frame of the bags, one for each policy step;
worldforge export DIR --to-bag FOLDER writes a bag for each episode.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from worldforge_ros.bags.actions import SOURCES
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch

MEGA = 1e6
_OBSERVATIONS = ("auto", "observation", "sensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="BAG|DIR", help="bags, or one data set for --to-bag"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--to-lerobot", type=Path, metavar="DIR", help="data set to make")
    target.add_argument(
        "--to-bag", type=Path, metavar="FOLDER", help="folder to make, with a bag an episode"
    )
    parser.add_argument("--embodiment", default="pusht", help="name or path of the embodiment file")
    parser.add_argument(
        "--task", help="what the robot was to do; as recorded, else the embodiment's, if left out"
    )
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument(
        "--images", dest="video", action="store_false", help="pictures as PNG: exact (default)"
    )
    pictures.add_argument(
        "--video", action="store_true", help="pictures as video: smaller, and not exact"
    )
    parser.set_defaults(video=False)
    parser.add_argument("--namespace", default="", help="of the topics in the bags")
    parser.add_argument(
        "--remap", action="append", default=[], metavar="OURS:=BAG'S", help="one topic's other name"
    )
    parser.add_argument(
        "--actions", choices=SOURCES, default="auto", help="what tells what the joints were told"
    )
    parser.add_argument(
        "--observations",
        choices=_OBSERVATIONS,
        default="auto",
        help="recorded ready-made, or made again from pictures and joint states",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was written here")


def run(args: argparse.Namespace) -> int:
    """Run the command; 0 when everything that could be read was written.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for options that do not belong together, and as
        the two exports.
    """
    from worldforge_ros.recording.progress import ProgressLine

    embodiment = load_embodiment(args.embodiment)
    line = ProgressLine(sys.stderr)
    if args.to_lerobot is not None:
        from worldforge_ros.bags.dataset_writer import export_bags

        report = export_bags(
            args.paths,
            args.to_lerobot,
            embodiment,
            task=args.task or "",
            video=args.video,
            namespace=args.namespace,
            remap=dict(_renamed(text) for text in args.remap),
            actions=args.actions,
            observations=args.observations,
            show=line.show,
        )
        text = dataset_text(report)
    else:
        from worldforge_ros.bags.dataset_bags import export_dataset

        _check_reverse(args)
        report = export_dataset(
            args.paths[0], args.to_bag, embodiment, namespace=args.namespace, show=line.show
        )
        text = bags_text(report)
    line.done()
    print(text)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _check_reverse(args: argparse.Namespace) -> None:
    if len(args.paths) != 1:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "DIR",
            found=f"{len(args.paths)} paths",
            expected="one data set for --to-bag",
        )
    given = {
        "--task": args.task is not None,
        "--video": args.video,
        "--remap": bool(args.remap),
        "--actions": args.actions != "auto",
        "--observations": args.observations != "auto",
    }
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            wrong[0],
            found="given with --to-bag",
            expected="only with --to-lerobot",
        )


def _renamed(text: str) -> tuple[str, str]:
    ours, found, theirs = text.partition(":=")
    if not (found and ours and theirs):
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "--remap", found=repr(text), expected="OURS:=BAG'S"
        )
    return ours, theirs


def dataset_text(report: dict[str, Any]) -> str:
    """What :func:`worldforge_ros.bags.dataset_writer.export_bags` did, for a terminal."""
    size = f"{report['size_bytes'] / MEGA:.1f} MB"
    lines = [
        f"data set {report['folder']}: {report['frames']} frames of {report['embodiment']} at "
        f"{report['fps']} Hz in {report['episodes']} episodes, pictures as {report['pictures']}, "
        f"{size}"
    ]
    for row in report["bags"]:
        episodes = len(row["episodes"])
        lines.append(
            f"{row['frames']:>8}  {row['bag']}  {episodes} episode{'s' * (episodes != 1)}, actions "
            f"from {row['actions']}"
        )
        left = {
            "between two steps": row["decimated"],
            "off the grid of steps": row["off_grid"],
            "without a set-point, see --actions": row["no_action"],
            **{f"refused with {code}": count for code, count in row["refused"].items()},
        }
        lines += [f"{count:>8}    left out, {why}" for why, count in left.items() if count]
        if row["first_refusal"]:
            lines.append(f"            first: {row['first_refusal']}")
        lines += [f"            {item['code']}: {item['message']}" for item in row["problems"]]
    return "\n".join(lines)


def bags_text(report: dict[str, Any]) -> str:
    """What :func:`worldforge_ros.bags.dataset_bags.export_dataset` did, for a terminal."""
    lines = [f"{len(report['bags'])} bags of {report['dataset']} in {report['folder']}"]
    for row in report["bags"]:
        lines.append(f"{row['frames']:>8}  {row['bag']}  {row['messages']} messages")
        if (row["read_again"], row["stretches"]) != (row["frames"], 1):
            lines.append(
                f"            stamps leave the grid of policy steps: read again as "
                f"{row['read_again']} frames in {row['stretches']} episodes"
            )
    if report["derived_velocities"]:
        lines.append("velocities are differences of positions: the data set holds none")
    return "\n".join(lines)
