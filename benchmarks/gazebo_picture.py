"""Do the shipped models see in the Gazebo world's picture what they see in gym-pusht's?

    python benchmarks/gazebo_picture.py --episodes 20 --json picture.json

The pictures are those of ``worldforge_ros.simulation.gazebo_picture``: rays through the camera of
``gazebo/worlds/pusht.sdf``, no Gazebo. Two parts:

- The same states, drawn by both: difference of pixels (levels of 255), where the policy's network
  sees the T's corners (mm, medians over the states), and how far the world model's embeddings are
  apart, as a share of how far two of gym-pusht's are that are 0.1 s, 0.5 s and an episode apart.
  The states are of the first 6 s of the first episodes below. ``plain`` is without multisampling.
- Closed-loop episodes (maximum coverage) with the built-in simulator, with Gazebo's picture of it,
  and with picture and physics of Gazebo; the last needs what ``benchmarks/gazebo_push.py`` needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gazebo_push import GAZEBO_STEP, ROOT, WORLD, build
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from worldforge_ros.evaluation.lockstep import Settings, load_models, play
from worldforge_ros.evaluation.protocols import check_unseen
from worldforge_ros.evaluation.statistics import bootstrap_mean
from worldforge_ros.policies.keypoint_step import ImageToKeypoints
from worldforge_ros.recording.progress import tracked
from worldforge_ros.resources import resolve_path
from worldforge_ros.simulation.gazebo_picture import (
    MULTISAMPLE_4,
    draw,
    pusht_poses,
    read_scene,
)
from worldforge_ros.simulation.pusht import (
    CONTROL_STEP,
    PHYSICS_STEP,
    UNITS_PER_METRE,
    PushTSimulation,
)

FloatArray = npt.NDArray[np.float64]
ImageArray = npt.NDArray[np.uint8]

PLAIN = ((0.0, 0.0),)
KEYPOINTS = "policy_preprocessor_step_3_worldforge_image_to_keypoints.safetensors"
BLOCK = 5
"""Control steps of one step of the world model."""
MOVING = 60
"""Control steps of an episode whose pictures are compared: later a policy may be stuck."""


class PicturedSimulation(PushTSimulation):
    """The built-in simulator with the Gazebo camera's picture."""

    def __init__(self, text: str, samples: Sequence[tuple[float, float]] = MULTISAMPLE_4) -> None:
        self._text = text
        self._samples = samples
        super().__init__()

    def image(self, size: int | None = None) -> ImageArray:
        """The picture of the state as it is; the size is the world's."""
        return draw(*read_scene(self._text, pusht_poses(self.state)), self._samples)


class GazeboSimulation(PicturedSimulation):
    """Picture and physics of the Gazebo world; only coverage is gym-pusht's."""

    def __init__(self, text: str, world: Path, program: Path) -> None:
        self._process = subprocess.Popen(
            [str(program), str(world)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        super().__init__(text)

    def reset(self, seed: int | None = None, state: npt.ArrayLike | None = None) -> None:
        """As the built-in simulator, then the same state there."""
        super().reset(seed, state)
        self._place()

    def set_state(self, state: npt.ArrayLike, velocity: npt.ArrayLike = (0.0, 0.0)) -> None:
        """As the built-in simulator, at rest."""
        super().set_state(state)
        self._place()

    def advance(self, setpoint: npt.ArrayLike, steps: int = 1) -> None:
        """One control step of the Gazebo world."""
        assert steps == round(CONTROL_STEP / PHYSICS_STEP)
        x, y = np.asarray(setpoint, dtype=np.float64).tolist()
        self._send(f"{x:.9f} {y:.9f}")
        assert self._process.stdout is not None
        row = np.asarray(self._process.stdout.readline().split()[1:], dtype=np.float64)
        state = [*(row[[0, 1, 4, 5]] * UNITS_PER_METRE), row[6]]
        super().set_state(state, row[2:4])

    def close(self) -> None:
        """End the program too."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        super().close()

    def _place(self) -> None:
        agent_x, agent_y, x, y = (self.state[:4] / UNITS_PER_METRE).tolist()
        hold = round(CONTROL_STEP / GAZEBO_STEP)
        self._send(f"path - {x} {y} {self.state[4]} {agent_x} {agent_y} {hold}")

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")


class Tracked(PushTSimulation):
    """The built-in simulator; keeps the state at every control step."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[FloatArray] = []

    def advance(self, setpoint: npt.ArrayLike, steps: int = 1) -> None:
        """As the built-in simulator."""
        self.states.append(self.state)
        super().advance(setpoint, steps)


def pictures(states: Sequence[FloatArray], simulation: PushTSimulation) -> ImageArray:
    """The pictures (N, height, width, 3) of ``states``."""
    found = []
    for state in states:
        PushTSimulation.set_state(simulation, state)
        found.append(simulation.image())
    return np.stack(found)


def corners(images: ImageArray, policy: Path) -> FloatArray:
    """Where the policy's network sees the T's corners, (N, 8, 2) environment units."""
    step = ImageToKeypoints()
    step.load_state_dict(load_file(policy / KEYPOINTS))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0
    found: FloatArray = step._keypoints(pixels).double().numpy()
    return found.reshape(len(images), 8, 2)


def compare(
    episodes: list[list[FloatArray]], text: str, embed: Callable[[ImageArray], FloatArray]
) -> dict[str, Any]:
    """Figures of the first part."""
    policy = resolve_path(Settings().policy)
    states = [state for episode in episodes for state in episode]
    simulation = PushTSimulation()
    truth = []
    for state in states:
        simulation.set_state(state)
        truth.append(simulation.keypoints())
    own = pictures(states, simulation)
    own_corners, own_latents = corners(own, policy), embed(own)
    ends = np.cumsum([len(episode) for episode in episodes])
    numbers = np.concatenate([np.full(len(e), i) for i, e in enumerate(episodes)])

    def apart(steps: int) -> float:
        same = numbers[steps:] == numbers[:-steps]
        moved = np.linalg.norm(own_latents[steps:] - own_latents[:-steps], axis=1)
        return float(moved[same].mean())

    firsts = own_latents[np.r_[0, ends[:-1]]]
    pairs = np.linalg.norm(firsts[:, np.newaxis] - firsts[np.newaxis], axis=-1)
    other = float(pairs[np.triu_indices(len(firsts), 1)].mean())
    found: dict[str, Any] = {
        "states": len(states),
        "gym_pusht_corner_error_mm": _distance(own_corners, np.stack(truth)),
    }
    for name, samples in (("multisampled", MULTISAMPLE_4), ("plain", PLAIN)):
        seen = pictures(states, PicturedSimulation(text, samples))
        pixels = np.abs(seen.astype(np.int16) - own)
        latents = float(np.linalg.norm(embed(seen) - own_latents, axis=1).mean())
        places = corners(seen, policy)
        found[name] = {
            "pixel_mean_abs": round(float(pixels.mean()), 3),
            "pixel_share_over_32": round(float((pixels.max(axis=-1) > 32).mean()), 4),
            "corner_error_mm": _distance(places, np.stack(truth)),
            "corner_apart_mm": _distance(places, own_corners),
            "latent_share_of_100_ms": round(latents / apart(1), 3),
            "latent_share_of_500_ms": round(latents / apart(BLOCK), 3),
            "latent_share_of_other_episode": round(latents / other, 3),
        }
    return found


def _distance(found: FloatArray, expected: FloatArray) -> float:
    return round(float(np.median(np.linalg.norm(found - expected, axis=-1).mean(axis=-1))), 2)


def print_tables(document: dict[str, Any]) -> None:
    """Both parts as text."""
    table = Table(title=f"the same {document['pictures']['states']} states, drawn by both")
    table.add_column("")
    columns = ("multisampled", "plain")
    for column in columns:
        table.add_column(column, justify="right")
    for key in document["pictures"]["multisampled"]:
        table.add_row(key, *(str(document["pictures"][column][key]) for column in columns))
    own = "gym_pusht_corner_error_mm"
    table.add_row(own, str(document["pictures"][own]))
    Console(width=130).print(table)
    first, last = document["seeds"][0], document["seeds"][-1]
    table = Table(title=f"maximum coverage, seeds {first} to {last}")
    for column in ("planner", "simulator", "coverage (95 %)", "success", "minus built-in (95 %)"):
        table.add_column(column)
    for item in document["episodes"]:
        table.add_row(
            item["planner"],
            item["simulator"],
            "{mean:.3f} ({ci_low:.3f} to {ci_high:.3f})".format(**item["coverage"]),
            f"{item['success']:.2f}",
            "{mean:+.3f} ({ci_low:+.3f} to {ci_high:+.3f})".format(**item["minus_built_in"]),
        )
    Console(width=130).print(table)


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and its 95 % interval."""
    found = bootstrap_mean(values)
    return {
        "mean": round(found.mean, 4),
        "ci_low": round(found.low, 4),
        "ci_high": round(found.high, 4),
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--planner", nargs="+", default=["first"], choices=("first", "scored"))
    parser.add_argument("--seeds", type=int, default=2000, help="consecutive from here")
    parser.add_argument("--episodes", type=int, default=20, help="number of seeds")
    parser.add_argument("--compared", type=int, default=10, help="episodes of the first part")
    parser.add_argument("--no-physics", action="store_true", help="leave Gazebo's physics out")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    seeds = range(args.seeds, args.seeds + args.episodes)
    check_unseen(seeds)
    settings = Settings()
    torch.set_num_threads(1)
    models = load_models(settings, ("scored",))
    text = WORLD.read_text(encoding="utf-8")
    built_in = Tracked()
    simulators: dict[str, PushTSimulation] = {
        "built-in": built_in,
        "Gazebo's picture": PicturedSimulation(text),
    }
    if not args.no_physics:
        program = build(ROOT / "build" / "gazebo_push")
        simulators["Gazebo's picture and physics"] = GazeboSimulation(text, WORLD, program)
    histories: list[list[FloatArray]] = []
    rows = []
    for planner in args.planner:
        own: list[float] = []
        for name, simulation in simulators.items():
            coverage, success = [], []
            for seed in tracked(f"{planner}, {name}", seeds, len(seeds)):
                built_in.states.clear()
                episode, run = play(planner, seed, settings, models, simulation)
                coverage.append(episode.result().most)
                success.append(run.success)
                if name == "built-in" and len(histories) < args.compared:
                    histories.append(built_in.states[:MOVING])
            own = own or coverage
            rows.append(
                {
                    "planner": planner,
                    "simulator": name,
                    "coverage": interval(coverage),
                    "success": float(np.mean(success)),
                    "minus_built_in": interval(np.subtract(coverage, own)),
                    "coverages": [round(value, 4) for value in coverage],
                }
            )
    for simulation in simulators.values():
        simulation.close()
    scorer = models.scorer
    assert scorer is not None

    def embed(images: ImageArray) -> FloatArray:
        with torch.inference_mode():
            parts = [scorer.embed(images[i : i + 64]) for i in range(0, len(images), 64)]
        return torch.cat(parts).double().numpy()

    document = {
        "seeds": list(seeds),
        "pictures": compare(histories, text, embed),
        "episodes": rows,
    }
    print_tables(document)
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
