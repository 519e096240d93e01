"""Does a push move the T in Gazebo's physics as in the built-in simulator?

    python benchmarks/gazebo_push.py --json push.json

Drives the pusher through the same set-points in both: in ``gazebo/worlds/pusht.sdf``, simulated by
the dartsim plugin of libignition-physics, which is what Gazebo Fortress steps, under the position
controllers of the world's JointTrajectoryController; and in gym-pusht's pymunk world. Displacement
is that of the T's centre of mass. Each path ends with 0.5 s of rest, after which both are read.

Needs Debian's libignition-physics-dev, libignition-physics5-dartsim-plugin5 and libsdformat-dev,
cmake and a C++ compiler; builds ``benchmarks/gazebo_push/`` into ``build/gazebo_push``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from worldforge_ros.simulation.pusht import PHYSICS_STEP, UNITS_PER_METRE, PushTSimulation

FloatArray = npt.NDArray[np.float64]

ROOT = Path(__file__).resolve().parent.parent
WORLD = ROOT / "gazebo" / "worlds" / "pusht.sdf"
SOURCE = Path(__file__).resolve().parent / "gazebo_push"
PACKAGES = "libignition-physics-dev libignition-physics5-dartsim-plugin5 libsdformat-dev"
GAZEBO_STEP = 0.001
"""Seconds of one physics step of the world."""
CENTRE_OF_MASS = 0.045
"""Metres from the T's origin along its stem (gym-pusht's ``center_of_gravity``)."""
REST = 0.5
"""Seconds of the last set-point at the end of a path."""
CONTROL_STEP = 0.1
"""Seconds of a set-point of a policy."""


@dataclass(frozen=True)
class Push:
    """Where the T (x, y, angle) and the pusher (x, y) start, and set-points (N, 2), one each 10 ms;
    metres and radians in gym-pusht's axes.
    """

    name: str
    tee: tuple[float, float, float]
    pusher: tuple[float, float]
    setpoints: FloatArray


@dataclass(frozen=True)
class Course:
    """What came of a path: pusher (N, 2) and T (N, 3) after every set-point, metres and radians."""

    pusher: FloatArray
    tee: FloatArray


def push(
    name: str,
    tee: tuple[float, float, float],
    *points: tuple[float, float],
    speed: float | None,
) -> Push:
    """Straight lines through ``points`` at ``speed`` m/s, or without one jumps of a policy: a
    set-point of at most 25 mm further every 0.1 s.
    """
    pieces = []
    for begin, end in pairwise(points):
        way = float(np.hypot(end[0] - begin[0], end[1] - begin[1]))
        if speed is None:
            share = np.linspace(0.0, 1.0, int(np.ceil(way / 0.025)) + 1)[1:]
            share = np.repeat(share, round(CONTROL_STEP / PHYSICS_STEP))
        else:
            share = np.linspace(0.0, 1.0, max(2, round(way / speed / PHYSICS_STEP)) + 1)[1:]
        pieces.append(np.asarray(begin) + share[:, np.newaxis] * np.subtract(end, begin))
    pieces.append(np.tile(points[-1], (round(REST / PHYSICS_STEP), 1)))
    return Push(name, tee, points[0], np.concatenate(pieces))


def paths() -> list[Push]:
    """The pushes of the table. At angle 0 the T's bar is at the top, its stem points down."""
    upright = (0.256, 0.256, 0.0)
    turned = (0.256, 0.256, 0.7)
    return [
        push("central, slow", upright, (0.256, 0.22), (0.256, 0.32), speed=0.05),
        push("central", upright, (0.256, 0.22), (0.256, 0.34), speed=0.15),
        push("central, fast", upright, (0.256, 0.20), (0.256, 0.36), speed=0.5),
        push("central, policy steps", upright, (0.256, 0.20), (0.256, 0.35), speed=None),
        push("20 mm left", upright, (0.236, 0.22), (0.236, 0.32), speed=0.15),
        push("20 mm right", upright, (0.276, 0.22), (0.276, 0.32), speed=0.15),
        push("45 mm right", upright, (0.301, 0.22), (0.301, 0.32), speed=0.15),
        push("45 mm left, fast", upright, (0.211, 0.20), (0.211, 0.33), speed=0.5),
        push("diagonal", upright, (0.20, 0.19), (0.29, 0.33), speed=0.15),
        push("diagonal, policy steps", turned, (0.33, 0.21), (0.23, 0.33), speed=None),
        push("stem end", upright, (0.20, 0.36), (0.31, 0.36), speed=0.15),
        push("stem near the bar", upright, (0.20, 0.31), (0.32, 0.31), speed=0.15),
        push("bar end", upright, (0.16, 0.271), (0.28, 0.271), speed=0.15),
        push("into the corner", upright, (0.21, 0.40), (0.225, 0.22), speed=0.15),
        push(
            "two stages",
            upright,
            (0.226, 0.22),
            (0.226, 0.30),
            (0.226, 0.21),
            (0.31, 0.21),
            (0.31, 0.32),
            speed=0.2,
        ),
        push(
            "two stages, policy steps",
            turned,
            (0.256, 0.20),
            (0.256, 0.30),
            (0.256, 0.20),
            (0.12, 0.20),
            (0.12, 0.30),
            (0.25, 0.33),
            speed=None,
        ),
        push("against the wall", (0.256, 0.36, 0.0), (0.27, 0.32), (0.27, 0.42), speed=0.15),
    ]


def pymunk_course(case: Push, simulation: PushTSimulation) -> Course:
    """The path in gym-pusht's world."""
    x, y, angle = case.tee
    start = np.asarray([*case.pusher, x, y]) * UNITS_PER_METRE
    simulation.set_state([*start, angle])
    pusher, tee = [], []
    for setpoint in case.setpoints:
        simulation.advance(setpoint)
        state = simulation.state
        pusher.append(state[:2] / UNITS_PER_METRE)
        tee.append([*(state[2:4] / UNITS_PER_METRE), state[4]])
    return Course(np.asarray(pusher), np.asarray(tee))


def build(folder: Path) -> Path:
    """Configure and build the C++ program; returns the executable."""
    if shutil.which("cmake") is None:
        raise SystemExit("gazebo_push.py: cmake is not installed")
    configure = ["cmake", "-S", str(SOURCE), "-B", str(folder)]
    done = subprocess.run(configure, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"gazebo_push.py: cmake cannot configure {SOURCE}; are Debian's packages there "
            f"(apt-get install {PACKAGES})?\n{done.stderr}"
        )
    done = subprocess.run(["cmake", "--build", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"gazebo_push.py: cannot build {SOURCE}\n{done.stdout}{done.stderr}")
    return folder / "gazebo_push"


def gazebo_courses(cases: list[Push], world: Path, program: Path) -> list[Course]:
    """The paths in the world file."""
    hold = round(PHYSICS_STEP / GAZEBO_STEP)
    lines = []
    for index, case in enumerate(cases):
        x, y, angle = case.tee
        lines.append(f"path {index} {x} {y} {angle} {case.pusher[0]} {case.pusher[1]} {hold}")
        lines += [f"{x:.9f} {y:.9f}" for x, y in case.setpoints]
    done = subprocess.run(
        [str(program), str(world)], input="\n".join(lines) + "\n", capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"gazebo_push.py: {done.stderr}")
    rows: list[list[FloatArray]] = [[] for _ in cases]
    for line in done.stdout.splitlines():
        index, *numbers = line.split()
        rows[int(index)].append(np.asarray(numbers, dtype=np.float64))
    courses = []
    for found in map(np.asarray, rows):
        tee = np.column_stack([found[:, 4:6], np.unwrap(found[:, 6])])
        courses.append(Course(found[:, :2], tee))
    return courses


def centre(tee: FloatArray) -> FloatArray:
    """Centre of mass (..., 2) of poses (..., 3), metres."""
    angle = tee[..., 2]
    return tee[..., :2] + CENTRE_OF_MASS * np.stack([-np.sin(angle), np.cos(angle)], axis=-1)


def row(case: Push, pymunk: Course, gazebo: Course) -> dict[str, Any]:
    """The figures of one path: millimetres and degrees."""
    start = np.asarray(case.tee)
    found: dict[str, Any] = {"path": case.name, "seconds": len(case.setpoints) * PHYSICS_STEP}
    for name, course in (("pymunk", pymunk), ("gazebo", gazebo)):
        moved = centre(course.tee[-1]) - centre(start)
        found[f"{name}_mm"] = round(float(np.hypot(*moved)) * 1e3, 2)
        found[f"{name}_deg"] = round(float(np.degrees(course.tee[-1, 2] - start[2])), 2)
    found["ratio"] = round(found["gazebo_mm"] / found["pymunk_mm"], 3)
    turned = abs(found["pymunk_deg"]) >= 1.0
    found["rotation_ratio"] = (
        round(found["gazebo_deg"] / found["pymunk_deg"], 3) if turned else None
    )
    apart = centre(gazebo.tee) - centre(pymunk.tee)
    found["apart_mm"] = round(float(np.hypot(*apart[-1])) * 1e3, 2)
    found["apart_deg"] = round(abs(found["gazebo_deg"] - found["pymunk_deg"]), 2)
    lag = np.hypot(*(gazebo.pusher - pymunk.pusher).T) * 1e3
    found["pusher_apart_rms_mm"] = round(float(np.sqrt(np.mean(lag**2))), 2)
    found["pusher_apart_max_mm"] = round(float(lag.max()), 2)
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows as text."""
    table = Table(title="T after the same pusher set-points: pymunk and Gazebo's dartsim")
    table.add_column("path")
    heads = ("moved, mm", "ratio", "turned, deg", "ratio", "apart", "pusher apart, rms / max mm")
    for head in heads:
        table.add_column(head, justify="right")
    for item in rows:
        rotation = item["rotation_ratio"]
        table.add_row(
            item["path"],
            f"{item['pymunk_mm']:.1f} / {item['gazebo_mm']:.1f}",
            f"{item['ratio']:.2f}",
            f"{item['pymunk_deg']:.1f} / {item['gazebo_deg']:.1f}",
            "-" if rotation is None else f"{rotation:.2f}",
            f"{item['apart_mm']:.1f} mm {item['apart_deg']:.1f} deg",
            f"{item['pusher_apart_rms_mm']:.1f} / {item['pusher_apart_max_mm']:.1f}",
        )
    Console(width=130).print(table)


def measure(world: Path, program: Path) -> list[dict[str, Any]]:
    """Every path in both; one row each."""
    cases = paths()
    simulation = PushTSimulation()
    gazebo = gazebo_courses(cases, world, program)
    rows = [
        row(case, pymunk_course(case, simulation), course)
        for case, course in zip(cases, gazebo, strict=True)
    ]
    simulation.close()
    return rows


def main() -> None:
    """Build, measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--world", type=Path, default=WORLD, metavar="SDF")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "gazebo_push")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = measure(args.world, build(args.build))
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
