"""How well a world model ranks: costs against what really happens to the block, on unseen seeds.

At moments along a demonstrator's episodes, 32 perturbed versions of its plan are scored from the
picture and then each is executed on a copy of the world.

``python -m worldforge_ros.training.ranking models/pusht/world_model --json FILE``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.evaluation.statistics import spearman
from worldforge_ros.observation import Observation
from worldforge_ros.scorers.lewm import load_lewm
from worldforge_ros.simulation.pusht import PushTSimulation
from worldforge_ros.training.demos import REACH, TICKS, CrossEntropyPlanner, pusher_motion
from worldforge_ros.training.world_model import probe_targets

FloatArray = npt.NDArray[np.float64]


def perturbed(plan: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """``count`` versions (count, H, 2) of a plan (H, 2): itself, and bends of up to about 0.1 m."""
    horizon = len(plan)
    ramp = np.arange(1, horizon + 1)[:, None] / horizon
    size = rng.uniform(0.01, 0.06, (count, 1, 1))
    early, late = rng.normal(size=(2, count, 1, 2))
    bent = plan + size * (early * np.sin(np.pi * ramp) + late * ramp)
    bent[0] = plan
    reachable: FloatArray = np.clip(bent, *REACH)
    return reachable


def decisions(seeds: range, horizon: int, candidates: int) -> list[dict[str, Any]]:
    """Moments with their picture, candidates (S, H, 2) and true corner errors (S,) in mm."""
    found: list[dict[str, Any]] = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 3])
        simulation = PushTSimulation()
        simulation.reset(seed=seed)
        planner = CrossEntropyPlanner(rng)
        goal = probe_targets(np.array([0, 0, *simulation.goal_pose]))[:16].reshape(8, 2)
        setpoint = np.clip(simulation.position, *REACH)
        picture = simulation.goal_image()
        for cycle in range(10):
            state, position, velocity = (
                simulation.state,
                simulation.position,
                simulation.velocity,
            )
            plan = planner.plan(state, position, velocity, setpoint)
            if cycle % 3 == 0:
                bent = perturbed(plan[:horizon], candidates, rng)
                _, speeds = pusher_motion(position, velocity, bent)
                clone = PushTSimulation(image_size=16)
                poses = clone.rollout(state, speeds, every=speeds.shape[1])[:, -1]
                ends = np.concatenate([np.zeros((candidates, 2)), poses], axis=-1)
                corners = probe_targets(ends)[:, :16].reshape(-1, 8, 2)
                here = probe_targets(state)[:16].reshape(8, 2)
                found.append(
                    {
                        "observation": Observation(
                            stamp=1,
                            images={"top": simulation.image()},
                            position=position,
                            velocity=velocity,
                        ),
                        "goal": picture,
                        "candidates": bent,
                        "errors": np.linalg.norm(corners - goal, axis=-1).mean(-1) * 100,
                        "still": float(np.linalg.norm(here - goal, axis=-1).mean() * 100),
                    }
                )
                clone.close()
            for index in range(4):
                simulation.advance(plan[index], TICKS)
            setpoint = plan[3]
            planner.advance(4)
            if simulation.coverage() > 0.95:
                break
        simulation.close()
    return found


def summarise(scorer: Any, moments: list[dict[str, Any]], objective: str) -> dict[str, float]:
    """Figures of one objective; errors are mean corner distances to the goal in mm."""
    correlations, chosen, ranks, informative = [], [], [], 0
    for moment in moments:
        scores = scorer.score(
            [moment["observation"]], moment["goal"], moment["candidates"], objective=objective
        )
        errors = moment["errors"]
        chosen.append(errors[scores.best_index])
        ranks.append((errors < errors[scores.best_index]).mean())
        # Where no candidate touches the block there is nothing to rank.
        if errors.std() > 1.0:
            informative += 1
            correlations.append(float(np.nan_to_num(spearman(scores.costs, errors))))
    return {
        "spearman_mean": float(np.mean(correlations)),
        "spearman_median": float(np.median(correlations)),
        "decisions": len(moments),
        "informative": informative,
        "chosen_mm": float(np.mean(chosen)),
        "chosen_percentile": float(np.mean(ranks)),
        "random_mm": float(np.mean([moment["errors"].mean() for moment in moments])),
        "best_mm": float(np.mean([moment["errors"].min() for moment in moments])),
        "still_mm": float(np.mean([moment["still"] for moment in moments])),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the measurement."""
    parser.add_argument("path", type=Path, help="checkpoint folder")
    parser.add_argument("--embodiment", default="pusht")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--json", type=Path, help="file for the figures")


def run(args: argparse.Namespace) -> int:
    """Measure every objective of a checkpoint; returns the exit status."""
    scorer = load_lewm(args.path, load_embodiment(args.embodiment))
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    moments = decisions(seeds, args.horizon, args.candidates)
    figures = {name: summarise(scorer, moments, name) for name in scorer.objectives}
    text = json.dumps({"model_id": scorer.model_id, "objectives": figures}, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return 0


def main() -> int:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description="Measure how well a world model ranks candidates.")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
