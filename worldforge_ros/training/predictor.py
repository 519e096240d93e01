"""Train a world model's predictor on, its encoder frozen, and fit what the objectives read.

Every frame is encoded once, so that a step costs the predictor only. Predictions are rolled out
over several blocks from one frame, as a planner does, and the whole rollout is compared with the
embeddings that came (LeWorldModel's own loss looks one block ahead). Episodes that have a picture
at their beginning only teach by their true state alone; half of each batch is of those where there
are any. Then, on the frozen model, the
linear pose probe is fitted by least squares and the steps-to-goal head is trained on
demonstrations.

``python -m worldforge_ros.training.predictor --embodiment pusht``
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from worldforge_ros.bridges.world_model import ActionBridge, pack_blocks
from worldforge_ros.checkpoints import file_sha256, training_device
from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.recording.progress import track
from worldforge_ros.scorers.architecture import picture_size
from worldforge_ros.scorers.lewm import LeWMOptions, load_lewm
from worldforge_ros.scorers.objectives import PROBE_FILE, STEPS_FILE, StepsHead, pose_probe
from worldforge_ros.scorers.rollout import Rollout
from worldforge_ros.training.dataset import EpisodeSet, list_episodes, load_episodes
from worldforge_ros.training.tasks import task_of
from worldforge_ros.training.world_model import (
    WEIGHTS,
    TrainingData,
    least_squares,
    prepare,
    write_tensors,
)

FloatArray = npt.NDArray[np.float64]

GOAL_PICTURES = 64
"""Pictures of the solved task that the steps-to-goal head is shown, at most."""
STEPS_UNIT = 10.0


@dataclass
class Windows:
    """``embeddings`` (B, blocks + 1, D) where there was a picture, ``seen`` (B, blocks + 1) bool,
    ``actions`` (B, blocks, A), ``targets`` (B, blocks + 1, outputs).
    """

    embeddings: Tensor
    seen: Tensor
    actions: Tensor
    targets: Tensor


@dataclass
class Frozen:
    """Embeddings (copies * F, D) of every frame and of its mirror image, actions and targets."""

    embeddings: Tensor
    data: TrainingData
    bridge: ActionBridge

    def windows(self, starts: npt.NDArray[np.int64], blocks: int) -> Windows:
        """What happened in ``blocks`` blocks from ``starts`` (B,) on."""
        whole = starts[:, None] + self.bridge.block * np.arange(blocks + 1)
        frames = self.data.at(whole)
        steps = starts[:, None] + np.arange(self.bridge.block * blocks)
        packed = pack_blocks(self.bridge.normalise(self.data.raw[steps]), self.bridge.block)
        place = self.embeddings.device
        return Windows(
            embeddings=self.embeddings[torch.from_numpy(np.maximum(frames, 0)).to(place)],
            seen=torch.from_numpy(frames >= 0).to(place),
            actions=torch.from_numpy(packed).float().to(place),
            targets=torch.from_numpy(self.data.targets_at(whole)).float().to(place),
        )


def freeze(scorer: Any, data: TrainingData, bridge: ActionBridge) -> Frozen:
    """Encode every frame and, where there is one, its mirror image."""
    copies = 1 if data.task.mirror is None else 2
    count = copies * len(data.images)
    parts = []
    with torch.inference_mode(), track("encoding", -(-count // 1024)) as advance:
        for start in range(0, count, 1024):
            frames = np.arange(start, min(start + 1024, count))
            parts.append(scorer.embed(data.pictures(frames)).float())
            advance("")
    return Frozen(torch.cat(parts).clone(), data, bridge)


def train_predictor(
    model: Any, head: nn.Module, frozen: Frozen, args: argparse.Namespace, sha256: str, log: Any
) -> None:
    """Rollouts from one frame over ``args.blocks`` blocks; BatchNorm keeps its statistics.

    :param sha256: of the weights that the embeddings came from.
    """
    rng = np.random.default_rng([args.seed, 9])
    parts = (model.predictor, model.action_encoder, model.pred_proj, head)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=1e-3)
    saved = args.out / "predictor_training.pt"
    first = 0
    modules = {"model": model, "head": head, "optimizer": optimizer}
    if args.resume and saved.is_file():
        state = torch.load(saved, map_location="cpu", weights_only=True)
        if state["sha256"] != sha256:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"world model of {saved}",
                found=state["sha256"],
                expected=f"{sha256} of --world-model: the embeddings are those of its encoder",
            )
        for name, module in modules.items():
            module.load_state_dict(state[name])
        first = int(state["step"])
        rng = np.random.default_rng([args.seed, 9, first])
    # Made from --steps also after --resume, so that a run can be given another end.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        args.learning_rate,
        total_steps=args.steps + 1,
        pct_start=0.05,
        last_epoch=first - 1,
    )
    starts = frozen.data.train
    usable = starts[_same_episode(starts, frozen, args.blocks)]
    branches = frozen.data.branches
    branches = branches[_same_episode(branches, frozen, args.blocks)]
    share = args.batch // 2 if len(branches) else 0
    rollout = Rollout(model)
    began = time.monotonic()
    total, summed = torch.zeros(2), 0
    place = frozen.embeddings.device
    with track("predictor", args.steps, first) as advance:
        for step in range(first, args.steps):
            chosen = rng.choice(usable, args.batch - share)
            if share:
                chosen = np.concatenate([chosen, rng.choice(branches, share)])
            window = frozen.windows(chosen, args.blocks)
            with torch.autocast(place.type, torch.bfloat16):
                predicted = rollout.batch(window.embeddings[:, :1], window.actions)
            predicted = predicted.float()
            seen = window.seen[:, 1:]
            error = (predicted - window.embeddings[:, 1:])[seen].square().mean()
            state_error = (head(predicted) - window.targets[:, 1:]).square().mean()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(error + args.state_weight * state_error)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += torch.tensor([error.item(), state_error.item()])
            summed += 1
            if (step + 1) % args.evaluate_every == 0 or step + 1 == args.steps:
                mean = total / summed
                total, summed = torch.zeros(2), 0
                entry = {
                    "step": step + 1,
                    "seconds": round(time.monotonic() - began, 1),
                    "error": round(float(mean[0]), 5),
                    "state_error": round(float(mean[1]), 5),
                    **held_out(model, head, frozen, args.blocks),
                }
                log(entry)
                content = {name: module.state_dict() for name, module in modules.items()}
                extra = {"step": step + 1, "sha256": sha256}
                torch.save({**content, **extra}, saved.with_suffix(".partial"))
                saved.with_suffix(".partial").replace(saved)
            advance(f"error {error.item():.4f}")
    for parameter in parameters:
        parameter.requires_grad_(False)


def _same_episode(
    starts: npt.NDArray[np.int64], frozen: Frozen, blocks: int
) -> npt.NDArray[np.bool_]:
    """Which starts (B,) have ``blocks`` blocks left in their episode."""
    return frozen.data.rooms(starts) >= frozen.bridge.block * blocks


@torch.no_grad()
def held_out(model: Any, head: nn.Module, frozen: Frozen, blocks: int) -> dict[str, float]:
    """Errors in mm after each block of rollouts on held-out episodes, as ``head`` reads them."""
    figures = {}
    kinds = (("", frozen.data.held_out), ("branch_", frozen.data.held_out_branches))
    for kind, every in kinds:
        starts = every[_same_episode(every, frozen, blocks)][:4096]
        if not len(starts):
            continue
        window = frozen.windows(starts, blocks)
        predicted = Rollout(model).batch(window.embeddings[:, :1], window.actions)
        read = head(torch.cat([window.embeddings[:, :1], predicted], dim=1))
        errors = frozen.data.task.errors_mm((read - window.targets).cpu().double().numpy())
        for name, values in errors.items():
            for index, value in enumerate(values.mean(axis=0)):
                figures[f"{kind}{name}_{index}_mm"] = round(float(value), 2)
    return figures


def fit_probe(model: Any, frozen: Frozen, blocks: int, rng: np.random.Generator) -> nn.Linear:
    """Linear reading of the task's points from encoded and rolled-out embeddings."""
    usable = frozen.data.train[_same_episode(frozen.data.train, frozen, blocks)]
    rows, targets = [], []
    with torch.inference_mode():
        for _ in range(60):
            window = frozen.windows(rng.choice(usable, 256), blocks)
            predicted = Rollout(model).batch(window.embeddings[:, :1], window.actions)
            # As many encoded as predicted ones: a cost compares the one with the other.
            rows += [predicted.flatten(0, 1), window.embeddings[:, 1:].flatten(0, 1)]
            targets += [window.targets[:, 1:].flatten(0, 1)] * 2
    return least_squares(torch.cat(rows), torch.cat(targets))


def train_steps_head(
    scorer: Any, frozen: Frozen, episodes: EpisodeSet, args: argparse.Namespace
) -> tuple[StepsHead, dict[str, float]]:
    """Steps between two moments of a demonstration, or from one to the solved task.

    :returns: the head, and its mean absolute error in steps on held-out demonstrations.
    """
    torch.manual_seed(args.seed)
    rng = np.random.default_rng([args.seed, 10])
    task = frozen.data.task
    goals = scorer.embed(task.goal_pictures(rng, GOAL_PICTURES)).float()
    place = frozen.embeddings.device
    head = StepsHead(frozen.embeddings.shape[1]).to(place)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.head_steps)
    chosen = [index for index, kind in enumerate(episodes.kinds) if kind == "demo"]
    train = [index for index in chosen if episodes.seeds[index] % 10 != 9]
    test = [index for index in chosen if episodes.seeds[index] % 10 == 9]
    count = len(frozen.data.images)
    copies = len(frozen.embeddings) // count

    def draw(where: list[int], pairs: int) -> tuple[Tensor, Tensor, Tensor]:
        now, then, steps = [], [], []
        for index in rng.choice(where, pairs):
            low, high = int(episodes.offsets[index]), int(episodes.offsets[index + 1])
            covered = np.flatnonzero(episodes.coverage[low:high] > task.solved)
            shift = count * int(rng.integers(copies))
            seen = np.flatnonzero(episodes.frames[low:high] >= 0)
            first = int(rng.integers(len(seen)))
            if len(covered) and rng.random() < 0.5:
                then.append(goals[int(rng.integers(len(goals)))])
                steps.append(max(0.0, float(covered[0] - seen[first])))
            else:
                last = int(rng.integers(first, len(seen)))
                then.append(frozen.embeddings[episodes.frames[low + seen[last]] + shift])
                steps.append(float(seen[last] - seen[first]))
            now.append(frozen.embeddings[episodes.frames[low + seen[first]] + shift])
        return torch.stack(now), torch.stack(then), torch.tensor(steps, device=place)

    with track("steps head", args.head_steps) as advance:
        for _ in range(args.head_steps):
            now, then, steps = draw(train, 256)
            loss = nn.functional.smooth_l1_loss(
                head(now, then) / STEPS_UNIT, steps / STEPS_UNIT, beta=0.5
            )
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            advance(f"loss {loss.item():.3f}")
    head.requires_grad_(False)
    figures = {}
    if test:
        now, then, steps = draw(test, 4096)
        figures["steps_error"] = round(float((head(now, then) - steps).abs().mean()), 2)
        figures["steps_spread"] = round(float((steps - steps.median()).abs().mean()), 2)
    return head, figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the training."""
    parser.add_argument("--embodiment", default="pusht")
    parser.add_argument("--data", type=Path, help="folder; the task's if left out")
    parser.add_argument(
        "--world-model",
        type=Path,
        help="what to go on from; data/EMBODIMENT/world_model/checkpoint if left out",
    )
    parser.add_argument(
        "--out", type=Path, help="log and resume state; data/EMBODIMENT/predictor if left out"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="what to write; models/EMBODIMENT/world_model if left out",
    )
    parser.add_argument(
        "--weights", choices=WEIGHTS, default=WEIGHTS[0], help="how the checkpoint stores them"
    )
    parser.add_argument("--blocks", type=int, default=5, help="blocks of a rollout")
    parser.add_argument(
        "--steps", type=int, default=6000, help="of the predictor; 0 only fits the probe and head"
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--state-weight",
        type=float,
        default=0.0,
        help="of the error of a linear reading of the true state, as in the training before",
    )
    parser.add_argument("--head-steps", type=int, default=3000, help="of the steps-to-goal head")
    parser.add_argument(
        "--objective", help="the checkpoint's default; that of the task if left out"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto: a GPU when there is one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--resume", action="store_true", help="go on from OUT, if it was begun")


def run(args: argparse.Namespace) -> int:
    """Train, fit, write the checkpoint; returns the exit status."""
    if args.blocks < 1:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "--blocks", found=args.blocks, expected="1 or more"
        )
    torch.manual_seed(args.seed)
    embodiment = load_embodiment(args.embodiment)
    folder = Path("data") / embodiment.name
    args.data = args.data or task_of(embodiment.name).data
    args.world_model = args.world_model or folder / "world_model" / "checkpoint"
    args.out = args.out or folder / "predictor"
    args.checkpoint = args.checkpoint or Path("models") / embodiment.name / "world_model"
    options = LeWMOptions(device=str(training_device(args.device)), threads=args.threads)
    scorer = load_lewm(args.world_model, embodiment, options)
    document = json.loads((args.world_model / "preprocessing.json").read_text(encoding="utf-8"))
    args.out.mkdir(parents=True, exist_ok=True)
    cache = args.out / "images.raw"
    episodes = load_episodes(list_episodes(args.data), cache)
    size = picture_size(document["image_size"], "preprocessing.image_size")
    data = prepare(episodes, embodiment, size)
    frozen = freeze(scorer, data, scorer.bridge)
    cache.unlink()
    log_file = args.out / "log.jsonl"

    def log(entry: dict[str, Any]) -> None:
        with log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)

    arguments = {key: str(value) for key, value in vars(args).items()}
    log({"event": "start", "sha256": scorer.sha256, "arguments": arguments})
    rng = np.random.default_rng([args.seed, 11])
    model = scorer.model
    place = frozen.embeddings.device
    head = pose_probe(frozen.embeddings.shape[1], data.task.reading).to(place)
    before = fit_probe(model, frozen, args.blocks, rng).to(place)
    head.load_state_dict(before.state_dict())
    log({"event": "before", **held_out(model, before, frozen, args.blocks)})
    if args.steps:
        train_predictor(model, head, frozen, args, scorer.sha256, log)
    probe = fit_probe(model, frozen, args.blocks, rng).to(place)
    steps_head, figures = train_steps_head(scorer, frozen, episodes, args)
    args.checkpoint.mkdir(parents=True, exist_ok=True)
    document["objective"] = args.objective or data.task.objective
    text = json.dumps(document, indent=2) + "\n"
    (args.checkpoint / "preprocessing.json").write_text(text, encoding="utf-8")
    config = (args.world_model / "config.json").read_text(encoding="utf-8")
    (args.checkpoint / "config.json").write_text(config, encoding="utf-8")
    parts = {"model.safetensors": model, PROBE_FILE: probe, STEPS_FILE: steps_head}
    for name, module in parts.items():
        write_tensors(args.checkpoint / name, module, args.weights)
    log(
        {
            "event": "end",
            "sha256": file_sha256(args.checkpoint / "model.safetensors"),
            **figures,
            **held_out(model, probe, frozen, args.blocks),
        }
    )
    return 0


def main() -> int:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
