"""The optimisation of a LeRobot policy with LeRobot's own loss, shared by the tasks.

A task brings its data, a new policy and how a finished one is written; this module brings the
optimiser, the schedule, the weight average, checkpoints to go on from, and the log.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.checkpoints import file_sha256, training_device
from worldforge_ros.policies.checkpoint import WEIGHTS_FILE
from worldforge_ros.recording.progress import tracked

if TYPE_CHECKING:
    import torch

Statistics = Mapping[str, Mapping[str, "torch.Tensor"]]


@dataclass(frozen=True)
class Task:
    """What is trained, and on what.

    ``make`` gives a new policy on a device. ``batch`` draws a training batch in the policy's units,
    with LeRobot's ``action_is_pad``. ``held_out`` is the error of a policy behind its preprocessor
    on data that it was not trained on. ``export`` writes a policy as a LeRobot folder.
    """

    make: Callable[[str], Any]
    statistics: Statistics
    batch: Callable[[np.random.Generator], dict[str, torch.Tensor]]
    held_out: Callable[[Any, Any], float]
    export: Callable[[Any, Statistics], None]


def statistics_of(table: Mapping[str, npt.NDArray[np.float32]]) -> Statistics:
    """Minimum, maximum, mean and standard deviation of each feature's rows (N, D), as LeRobot's
    data sets hold them.
    """
    import torch

    return {
        name: {
            "min": torch.from_numpy(values.min(axis=0)),
            "max": torch.from_numpy(values.max(axis=0)),
            "mean": torch.from_numpy(values.mean(axis=0)),
            "std": torch.from_numpy(values.std(axis=0)),
        }
        for name, values in table.items()
    }


def export_with_step(policy: Any, stats: Statistics, step: Any, folder: Path) -> None:
    """Write a LeRobot folder: configuration, weights, both processors and their states.

    :param step: a LeRobot processor step that is put before the normalisation.
    """
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.processor.normalize_processor import NormalizerProcessorStep

    folder.mkdir(parents=True, exist_ok=True)
    preprocessor, postprocessor = make_pre_post_processors(policy.config, dataset_stats=stats)
    steps = list(preprocessor.steps)
    place = next(i for i, s in enumerate(steps) if isinstance(s, NormalizerProcessorStep))
    preprocessor.steps = [*steps[:place], step, *steps[place:]]
    policy.save_pretrained(folder)
    preprocessor.save_pretrained(folder)
    postprocessor.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def cosine_rate(step: int, steps: int, warm_up: int) -> float:
    """Share of the learning rate at ``step`` of ``steps``: a linear rise, then half a cosine down
    to 0.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


class Average:
    """Exponential moving average of a model's parameters, with a warm-up."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._decay = decay
        self._steps = 0
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, model: torch.nn.Module) -> None:
        """Move towards the model's parameters."""
        import torch

        self._steps += 1
        keep = min(self._decay, (1 + self._steps) / (10 + self._steps))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                self.values[name].lerp_(parameter, 1.0 - keep)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self._steps, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self._steps = int(state["steps"])
        for name, value in state["values"].items():
            self.values[name].copy_(value)

    def write_to(self, model: torch.nn.Module) -> None:
        """Replace the model's parameters by their averages."""
        import torch

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.values[name])


def fit(task: Task, args: argparse.Namespace) -> None:
    """Train with resume and write the averaged weights at every checkpoint.

    :param args: the options of :func:`add_arguments`.
    """
    import torch
    from lerobot.policies.factory import make_pre_post_processors

    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    place = training_device(args.device)
    policy = task.make(str(place))
    checkpoint = work / "policy_training.pt"
    saved = None
    if args.resume and checkpoint.is_file():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    # Weights belong to the scale they were trained at, even when more data arrived since.
    stats = saved["stats"] if saved else task.statistics
    preprocessor, _ = make_pre_post_processors(policy.config, dataset_stats=stats)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=args.lr, betas=(0.95, 0.999), weight_decay=args.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_rate(step, args.steps, min(300, args.steps // 10))
    )
    average = Average(policy, args.ema)
    start = 0
    if saved:
        policy.load_state_dict(saved["policy"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        average.load_state_dict(saved["average"])
        start = saved["step"]
    rng = np.random.default_rng([args.seed, start])
    torch.manual_seed(args.seed + start)
    log = (work / "policy_training.jsonl").open("a" if start else "w")
    policy.train()
    began = time.monotonic()
    total, summed = 0.0, 0
    for step in tracked("steps", range(start, args.steps), args.steps):
        batch = task.batch(rng)
        pads = batch.pop("action_is_pad").to(place)
        prepared = {**preprocessor(batch), "action_is_pad": pads}
        with torch.autocast(place.type, dtype=torch.bfloat16, enabled=args.bf16):
            loss, _ = policy.forward(prepared)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update(policy)
        total += loss.item()
        summed += 1
        if (step + 1) % args.log_every == 0 or step + 1 == args.steps:
            averaged = task.make(str(place))
            average.write_to(averaged)
            row = {
                "step": step + 1,
                "loss": total / summed,
                "held_out": task.held_out(averaged.eval(), preprocessor),
                "seconds": round(time.monotonic() - began, 1),
            }
            total, summed = 0.0, 0
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(json.dumps(row), flush=True)
            torch.save(
                {
                    "policy": policy.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "average": average.state_dict(),
                    "stats": stats,
                    "step": step + 1,
                },
                checkpoint,
            )
            # What is shipped loads where there is no GPU.
            averaged.config.device = "cpu"
            task.export(averaged.cpu(), stats)
    log.close()
    weights = Path(args.out) / WEIGHTS_FILE
    print(f"{weights}: sha256 {file_sha256(weights)}")


def add_arguments(
    parser: argparse.ArgumentParser, *, work: str, out: str, steps: int, batch: int, bf16: bool
) -> None:
    """Options of :func:`fit`, with the task's defaults."""
    parser.add_argument("--work", default=work, help="folder of checkpoints and logs")
    parser.add_argument("--out", default=out, help="LeRobot folder to write")
    parser.add_argument("--steps", type=int, default=steps, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the weight average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto: a GPU when there is one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=bf16)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
