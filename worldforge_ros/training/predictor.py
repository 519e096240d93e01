"""Train a world model's predictor on, its encoder frozen, and fit what the objectives read.

Every frame is encoded once, so that a step costs the predictor only. Predictions are rolled out
over several blocks from one frame, as a planner does, and the whole rollout is compared with the
embeddings that came (LeWorldModel's own loss looks one block ahead). Then, on the frozen model, the
linear pose probe is fitted by least squares and the steps-to-goal head is trained on
demonstrations.

``python -m worldforge_ros.training.predictor --world-model data/pusht/world_model/checkpoint``
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
from worldforge_ros.scorers.lewm import LeWMOptions, load_lewm
from worldforge_ros.scorers.objectives import (
    CORNERS,
    MM_PER_PROBE_UNIT,
    PROBE_FILE,
    STEPS_FILE,
    StepsHead,
    pose_probe,
)
from worldforge_ros.scorers.rollout import Rollout
from worldforge_ros.simulation.pusht import SUCCESS_COVERAGE, PushTSimulation
from worldforge_ros.training.dataset import EpisodeSet, list_episodes, load_episodes
from worldforge_ros.training.world_model import TrainingData, least_squares, prepare

FloatArray = npt.NDArray[np.float64]

GOAL_PICTURES = 64
"""Pictures of the solved task, the pusher anywhere, that the steps-to-goal head is shown."""
STEPS_UNIT = 10.0


@dataclass
class Frozen:
    """Embeddings (2 N, D) of every frame and of its mirror image, actions and targets."""

    embeddings: Tensor
    data: TrainingData
    bridge: ActionBridge

    def windows(self, starts: npt.NDArray[np.int64], blocks: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, blocks + 1, D), actions (B, blocks, A) and targets (B, blocks + 1, 18) of
        windows that begin at ``starts`` (B,).
        """
        frames = starts[:, None] + self.bridge.block * np.arange(blocks + 1)
        steps = starts[:, None] + np.arange(self.bridge.block * blocks)
        packed = pack_blocks(self.bridge.normalise(self.data.raw[steps]), self.bridge.block)
        place = self.embeddings.device
        return (
            self.embeddings[torch.from_numpy(frames).to(place)],
            torch.from_numpy(packed).float().to(place),
            torch.from_numpy(self.data.targets[frames]).float().to(place),
        )


def freeze(scorer: Any, data: TrainingData, bridge: ActionBridge) -> Frozen:
    """Encode every frame and its mirror image."""
    count = 2 * len(data.images)
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
    rollout = Rollout(model)
    began = time.monotonic()
    total = torch.zeros(2)
    place = frozen.embeddings.device
    with track("predictor", args.steps, first) as advance:
        for step in range(first, args.steps):
            embeddings, blocks, targets = frozen.windows(
                rng.choice(usable, args.batch), args.blocks
            )
            with torch.autocast(place.type, torch.bfloat16):
                predicted = rollout.batch(embeddings[:, :1], blocks)
            predicted = predicted.float()
            error = (predicted - embeddings[:, 1:]).square().mean()
            state_error = (head(predicted) - targets[:, 1:]).square().mean()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(error + args.state_weight * state_error)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += torch.tensor([error.item(), state_error.item()])
            if (step + 1) % args.evaluate_every == 0 or step + 1 == args.steps:
                mean = total / ((step - first) % args.evaluate_every + 1)
                total = torch.zeros(2)
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
    """Corner errors in mm after each block of rollouts on held-out episodes, as ``head`` reads
    them.
    """
    starts = frozen.data.held_out
    starts = starts[_same_episode(starts, frozen, blocks)][:4096]
    embeddings, actions, targets = frozen.windows(starts, blocks)
    predicted = Rollout(model).batch(embeddings[:, :1], actions)
    read = head(torch.cat([embeddings[:, :1], predicted], dim=1))
    offsets = (read - targets)[..., : 2 * CORNERS].unflatten(-1, (CORNERS, 2))
    errors = offsets.norm(dim=-1).mean(dim=(0, 2)) * MM_PER_PROBE_UNIT
    return {f"corners_{index}_mm": round(float(value), 2) for index, value in enumerate(errors)}


def fit_probe(model: Any, frozen: Frozen, blocks: int, rng: np.random.Generator) -> nn.Linear:
    """Linear reading of corners and pusher from encoded and rolled-out embeddings."""
    usable = frozen.data.train[_same_episode(frozen.data.train, frozen, blocks)]
    rows, targets = [], []
    with torch.inference_mode():
        for _ in range(60):
            embeddings, actions, true = frozen.windows(rng.choice(usable, 256), blocks)
            predicted = Rollout(model).batch(embeddings[:, :1], actions)
            # As many encoded as predicted ones: a cost compares the one with the other.
            rows += [predicted.flatten(0, 1), embeddings[:, 1:].flatten(0, 1)]
            targets += [true[:, 1:].flatten(0, 1)] * 2
    return least_squares(torch.cat(rows), torch.cat(targets))


def train_steps_head(
    scorer: Any, frozen: Frozen, episodes: EpisodeSet, args: argparse.Namespace
) -> tuple[StepsHead, dict[str, float]]:
    """Steps between two moments of a demonstration, or from one to the solved task.

    :returns: the head, and its mean absolute error in steps on held-out demonstrations.
    """
    torch.manual_seed(args.seed)
    rng = np.random.default_rng([args.seed, 10])
    goals = scorer.embed(_goal_pictures(rng)).float()
    place = frozen.embeddings.device
    head = StepsHead(frozen.embeddings.shape[1]).to(place)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.head_steps)
    chosen = [index for index, kind in enumerate(episodes.kinds) if kind == "demo"]
    train = [index for index in chosen if episodes.seeds[index] % 10 != 9]
    test = [index for index in chosen if episodes.seeds[index] % 10 == 9]
    mirror = len(frozen.data.images)

    def draw(where: list[int], count: int) -> tuple[Tensor, Tensor, Tensor]:
        now, then, steps = [], [], []
        for index in rng.choice(where, count):
            low, high = int(episodes.offsets[index]), int(episodes.offsets[index + 1])
            covered = np.flatnonzero(episodes.coverage[low:high] > SUCCESS_COVERAGE)
            shift = mirror * int(rng.integers(2))
            first = int(rng.integers(low, high))
            if len(covered) and rng.random() < 0.5:
                then.append(goals[int(rng.integers(len(goals)))])
                steps.append(max(0.0, low + float(covered[0]) - first))
            else:
                last = int(rng.integers(first, high))
                then.append(frozen.embeddings[last + shift])
                steps.append(float(last - first))
            now.append(frozen.embeddings[first + shift])
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


def _goal_pictures(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    simulation = PushTSimulation()
    pictures = [
        simulation.goal_image(agent) for agent in rng.uniform(0.03, 0.48, (GOAL_PICTURES, 2))
    ]
    simulation.close()
    return np.stack(pictures)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the training."""
    parser.add_argument("--data", type=Path, default=Path("data/pusht/demos"))
    parser.add_argument(
        "--world-model", type=Path, default=Path("data/pusht/world_model/checkpoint")
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/pusht/predictor"), help="log and resume state"
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("models/pusht/world_model"), help="what to write"
    )
    parser.add_argument("--embodiment", default="pusht")
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
    parser.add_argument("--objective", default="pose", help="the checkpoint's default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto: a GPU when there is one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--resume", action="store_true", help="go on from OUT, if it was begun")


def run(args: argparse.Namespace) -> int:
    """Train, fit, write the checkpoint; returns the exit status."""
    from safetensors.torch import save

    if args.blocks < 1:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "--blocks", found=args.blocks, expected="1 or more"
        )
    torch.manual_seed(args.seed)
    embodiment = load_embodiment(args.embodiment)
    options = LeWMOptions(device=str(training_device(args.device)), threads=args.threads)
    scorer = load_lewm(args.world_model, embodiment, options)
    document = json.loads((args.world_model / "preprocessing.json").read_text(encoding="utf-8"))
    args.out.mkdir(parents=True, exist_ok=True)
    cache = args.out / "images.raw"
    episodes = load_episodes(list_episodes(args.data), cache)
    data = prepare(episodes, embodiment, int(document["image_size"]))
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
    head = pose_probe(frozen.embeddings.shape[1]).to(place)
    before = fit_probe(model, frozen, args.blocks, rng).to(place)
    head.load_state_dict(before.state_dict())
    log({"event": "before", **held_out(model, before, frozen, args.blocks)})
    if args.steps:
        train_predictor(model, head, frozen, args, scorer.sha256, log)
    probe = fit_probe(model, frozen, args.blocks, rng).to(place)
    steps_head, figures = train_steps_head(scorer, frozen, episodes, args)
    args.checkpoint.mkdir(parents=True, exist_ok=True)
    document["objective"] = args.objective
    text = json.dumps(document, indent=2) + "\n"
    (args.checkpoint / "preprocessing.json").write_text(text, encoding="utf-8")
    config = (args.world_model / "config.json").read_text(encoding="utf-8")
    (args.checkpoint / "config.json").write_text(config, encoding="utf-8")
    parts = {"model.safetensors": model, PROBE_FILE: probe, STEPS_FILE: steps_head}
    for name, module in parts.items():
        tensors = {k: v.cpu().contiguous() for k, v in module.state_dict().items()}
        (args.checkpoint / name).write_bytes(save(tensors))
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
