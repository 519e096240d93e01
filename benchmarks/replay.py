"""Replaying a bag against real time, and reading it alone.

    python benchmarks/replay.py --json replay.json

The bag is made first: a minute of PushT in its simulator, pushed at random, with a 96 x 96 camera
at 10 Hz and joint states and commands at 100 Hz. ``realtime_factor`` is its length over the time
that a replay takes with the shipped models, planner ``scored``, 32 candidates and a plan every
0.5 s; models are loaded before. ``read_factor`` is the same for reading and decoding every message.
``rss_mb`` is the most memory that the process held; ``rss_growth_mb`` by how much more a bag four
times as long needs, where ``--long`` asks for it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from worldforge_ros.bags.reader import Bag
from worldforge_ros.bags.types import typestore
from worldforge_ros.bags.writer import BagWriter
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.replay.engine import replay_bag
from worldforge_ros.replay.settings import ReplaySettings
from worldforge_ros.simulation.pusht import PushTSimulation
from worldforge_ros.training.demos import play

NS = 1_000_000_000
START = 1_700_000_000 * NS
RATE = 100


class Messages:
    """Messages of a PushT robot for a bag writer."""

    def __init__(self, writer: BagWriter) -> None:
        self._writer = writer
        self._store = typestore()

    def new(self, kind: str, **fields: Any) -> Any:
        """A message of that type."""
        return self._store.types[kind](**fields)

    def header(self, stamp: int, frame: str) -> Any:
        """A header."""
        time_ = self.new("builtin_interfaces/msg/Time", sec=stamp // NS, nanosec=stamp % NS)
        return self.new("std_msgs/msg/Header", stamp=time_, frame_id=frame)

    def put(self, topic: str, stamp: int, message: Any) -> None:
        """Write a message that arrives when it was stamped."""
        kind = message.__msgtype__
        self._writer.add(topic, kind, stamp, bytes(self._store.serialize_cdr(message, kind)))

    def image(self, topic: str, stamp: int, picture: np.ndarray) -> None:
        """A picture (height, width, 3) uint8."""
        height, width = picture.shape[:2]
        message = self.new(
            "sensor_msgs/msg/Image",
            header=self.header(stamp, "camera_top"),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * width,
            data=picture.reshape(-1),
        )
        self.put(topic, stamp, message)


def make_bag(folder: Path, seconds: int) -> Path:
    """A PushT recording of so many seconds."""
    episode = play(9_001, steps=10 * seconds)
    world = PushTSimulation()
    world.reset(seed=0)
    goal = world.image()
    joints = list(load_embodiment("pusht").joint_names)
    with BagWriter(folder) as writer:
        messages = Messages(writer)
        messages.image("/goal_image", START, goal)
        for tick in range(RATE * seconds):
            stamp = START + tick * NS // RATE
            step, part = divmod(tick, RATE // 10)
            following = min(step + 1, len(episode) - 1)
            share = part / (RATE // 10)
            rows = (episode.position, episode.velocity)
            place, speed = ((1 - share) * row[step] + share * row[following] for row in rows)
            state = messages.new(
                "sensor_msgs/msg/JointState",
                header=messages.header(stamp, "base"),
                name=joints,
                position=place.astype(np.float64),
                velocity=speed.astype(np.float64),
                effort=np.zeros(0),
            )
            messages.put("/joint_states", stamp, state)
            layout = messages.new("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0)
            told = episode.action[step].astype(np.float64)
            command = messages.new("std_msgs/msg/Float64MultiArray", layout=layout, data=told)
            messages.put("/joint_commands", stamp, command)
            if part == 0:
                messages.image("/camera/top/image_raw", stamp, episode.images[step])
    return folder


def peak_mb() -> float:
    """Most memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def read(bag: Path) -> float:
    """Seconds that reading and decoding every message takes."""
    began = time.perf_counter()
    with Bag.open(bag) as opened:
        count = sum(1 for _ in opened.events())
        assert count == opened.messages
    return time.perf_counter() - began


def main() -> None:
    """Make the bag, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="length of the bag")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=3, help="replays; the median is given")
    parser.add_argument("--long", action="store_true", help="also a bag four times as long")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    settings = ReplaySettings(candidates=args.candidates, threads=args.threads)
    models = settings.load(load_embodiment("pusht"))
    figures: dict[str, Any] = {
        "seconds": args.seconds,
        "candidates": args.candidates,
        "threads": args.threads,
    }
    with tempfile.TemporaryDirectory() as folder:
        bag = make_bag(Path(folder) / "minute", args.seconds)
        reading, replaying = [], []
        for _ in range(args.samples):
            reading.append(read(bag))
            began = time.perf_counter()
            document = replay_bag(bag, settings, models)
            replaying.append(time.perf_counter() - began)
        figures |= {
            "cycles": document["cycles"]["started"],
            "messages": document["bag"]["messages"],
            "read_s": statistics.median(reading),
            "replay_s": statistics.median(replaying),
            "read_factor": args.seconds / statistics.median(reading),
            "realtime_factor": args.seconds / statistics.median(replaying),
            "rss_mb": peak_mb(),
            "rss_growth_mb": None,
        }
        if args.long:
            longer = make_bag(Path(folder) / "longer", 4 * args.seconds)
            before = peak_mb()
            replay_bag(longer, settings, models)
            figures["rss_growth_mb"] = peak_mb() - before
    table = Table(title=f"{args.seconds} s of PushT, {args.candidates} candidates")
    for name in ("", "seconds", "x real time"):
        table.add_column(name, justify="right" if name else "left")
    for name in ("read", "replay"):
        factor = figures["read_factor" if name == "read" else "realtime_factor"]
        table.add_row(name, f"{figures[f'{name}_s']:.2f}", f"{factor:.1f}")
    console = Console()
    console.print(table)
    console.print(f"{figures['cycles']} cycles, at most {figures['rss_mb']:.0f} MB resident")
    if args.long:
        console.print(f"{figures['rss_growth_mb']:.1f} MB more for four times the length")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
