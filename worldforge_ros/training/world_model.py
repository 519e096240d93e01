"""Train the small LeWorldModel on recorded episodes.

LeWorldModel's recipe (arXiv 2603.19312): mean squared error to the next embedding, without a
stop-gradient, plus ``0.09 *`` SIGReg; AdamW, gradient clipping at 1, windows of four frames one
action block apart. ``--state-weight`` above 0 departs from it: the error of a linear reading of
the true state (PushT: block corners and pusher; ALOHA: cube and fingers), from encoded and from
predicted embeddings, is added to the loss.

After training a linear probe of the same points is fitted to the frozen embeddings by least
squares; it is what the objectives ``pose`` and ``scene`` read. Which points there are is said in
``worldforge_ros.training.tasks``, the rest in the embodiment file.

``python -m worldforge_ros.training.world_model --embodiment pusht``
"""

from __future__ import annotations

import argparse
import copy
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
from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.recording.progress import tracked
from worldforge_ros.scorers.architecture import ENCODERS, build_lewm, default_config
from worldforge_ros.scorers.encoders import (
    PIXEL_MEAN,
    PIXEL_STD,
    ImageSize,
    height_width,
    normalise_pixels,
    resize_pixels,
)
from worldforge_ros.scorers.objectives import pose_probe
from worldforge_ros.training.dataset import EPISODE_KINDS, EpisodeSet, list_episodes, load_episodes
from worldforge_ros.training.tasks import Task, task_of

FloatArray = npt.NDArray[np.float64]

FRAMES = 4
"""Frames of a training window: three contexts and their successors."""
SIGREG_WEIGHT = 0.09
RECALIBRATION_BATCHES = 24
WEIGHTS = ("float32", "float16")
"""How weights may be stored; they are computed with in float32 either way."""
PROBE_BATCHES = 60
"""Training batches of 128 windows that the linear probe is fitted to, at most: no more than there
are windows."""


@dataclass
class TrainingData:
    """Frames at model resolution. Steps, frames and marks are counted on through the mirror images
    where the task has one: step i + N is the mirror image of step i, frame i + F that of frame i.

    ``images`` (F, height, width, 3) uint8, ``frames`` (N,) the frame of a step or -1, ``raw``
    (copies * N, J) actions before z-scoring, ``targets`` (copies * M, outputs) of the task's
    reading at the M steps that have a frame or are whole blocks from their episode's start,
    ``marks`` (N,) the row of a step in there or -1, ``ends`` (episodes,) the last step of each
    episode. ``train`` and ``held_out`` are the first steps of windows with a picture every block,
    ``branches`` and ``held_out_branches`` of those with a picture at their beginning only.
    """

    task: Task
    images: npt.NDArray[np.uint8]
    frames: npt.NDArray[np.int64]
    marks: npt.NDArray[np.int64]
    raw: FloatArray
    targets: FloatArray
    mean: FloatArray
    std: FloatArray
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    branches: npt.NDArray[np.int64]
    held_out_branches: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    def rooms(self, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Steps (B,) from ``starts`` (B,) to the last one of their episodes."""
        places = starts % len(self.frames)
        return self.ends[np.searchsorted(self.ends, places)] - places

    def at(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Frames (...) of steps (...), -1 where there is none."""
        return self._counted(self.frames, len(self.images), steps)

    def targets_at(self, steps: npt.NDArray[np.int64]) -> FloatArray:
        """Targets (..., outputs) of steps (...) whole blocks from a frame."""
        rows = int(self.marks.max()) + 1
        found: FloatArray = self.targets[self._counted(self.marks, rows, steps)]
        return found

    def _counted(
        self, places: npt.NDArray[np.int64], size: int, steps: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        copy, place = np.divmod(steps, len(places))
        found: npt.NDArray[np.int64] = np.where(places[place] < 0, -1, places[place] + copy * size)
        return found

    def pictures(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Pictures (..., height, width, 3) of frames (...), mirrored where they say so."""
        count = len(self.images)
        found = self.images[frames % count]
        mirrored = frames >= count
        if self.task.mirror is not None and mirrored.any():
            found[mirrored] = self.task.mirror.pictures(found[mirrored])
        return found


def prepare(episodes: EpisodeSet, embodiment: Embodiment, image_size: ImageSize) -> TrainingData:
    """Resize, mirror and index; the episodes whose seed ends in 9 are held out.

    Episodes with a picture at every whole block or more often give windows; the others, which have
    too few, give branches: one from each picture.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for episodes that are too few or do not fit the
        embodiment, ``IMAGE_SIZE_MISMATCH`` for pictures that are neither the camera's nor as large
        as the model's: resized twice they would not be what the scorer sees.
    """
    task = task_of(embodiment.name)
    joints = len(embodiment.joints)
    bridge = ActionBridge.of(embodiment, np.zeros(joints), np.ones(joints))
    _check_episodes(episodes, embodiment, image_size)
    raw = bridge.raw_actions(episodes.action, episodes.position)
    count = len(episodes.images)
    images = np.empty((count, *height_width(image_size), 3), np.uint8)
    for start in range(0, count, 512):
        part = resize_pixels(episodes.images[start : start + 512], image_size)
        images[start : start + len(part)] = part
    marks = _marks(episodes, bridge.block)
    states = episodes.state[marks >= 0].astype(np.float64)
    steps = len(raw)
    if task.mirror is not None:
        raw = np.concatenate([raw, task.mirror.actions(raw)])
        states = np.concatenate([states, task.mirror.states(states)])
    length = (FRAMES - 1) * bridge.block + 1
    last = episodes.seeds % 10 == 9
    full = bridge.block % np.array(episodes.image_every) == 0
    held, rest = np.flatnonzero(full & last), np.flatnonzero(full & ~last)
    held_branches, branches = np.flatnonzero(~full & last), np.flatnonzero(~full & ~last)
    train = episodes.windows(length, episodes=rest)
    held_out = episodes.windows(length, stride=5, episodes=held)
    if not len(held_out):
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "recorded episodes",
            found=f"{len(episodes)}, none to hold out",
            expected=f"10 or more of at least {length} steps",
        )
    return TrainingData(
        task=task,
        images=images,
        frames=episodes.frames,
        marks=marks,
        raw=raw,
        targets=task.targets(states),
        mean=raw.mean(axis=0),
        std=raw.std(axis=0),
        train=train if task.mirror is None else np.concatenate([train, train + steps]),
        held_out=held_out,
        branches=episodes.windows(bridge.block + 1, episodes=branches),
        held_out_branches=episodes.windows(bridge.block + 1, episodes=held_branches),
        ends=episodes.offsets[1:] - 1,
    )


def _marks(episodes: EpisodeSet, block: int) -> npt.NDArray[np.int64]:
    """Rows (N,) of targets of the steps that have a frame or are whole blocks from their episode's
    start, -1 of the others.
    """
    step = np.concatenate([np.arange(length) for length in np.diff(episodes.offsets)])
    marked = (episodes.frames >= 0) | (step % block == 0)
    rows: npt.NDArray[np.int64] = np.where(marked, np.cumsum(marked) - 1, -1)
    return rows


def _check_episodes(episodes: EpisodeSet, embodiment: Embodiment, image_size: ImageSize) -> None:
    joints = len(embodiment.joints)
    if episodes.action.shape[1:] != (joints,):
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "actions of the recorded episodes",
            found=f"{episodes.action.shape[1:]} a step",
            expected=f"({joints},), the joints of embodiment {embodiment.name}",
        )
    camera = embodiment.cameras[embodiment.scoring.camera]
    sizes = ((camera.height, camera.width), height_width(image_size))
    if episodes.images.shape[1:3] not in sizes:
        raise mismatch(
            ErrorCode.IMAGE_SIZE_MISMATCH,
            "pictures of the recorded episodes",
            found=f"{episodes.images.shape[1:3]}",
            expected=" or ".join(str(size) for size in sizes),
        )


@dataclass
class Batch:
    """Pixels (B, 4, 3, height, width), blocks (B, 3, block * J), targets (B, 4, outputs)."""

    pixels: Tensor
    blocks: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on ``device``."""
        return Batch(*(part.to(device) for part in (self.pixels, self.blocks, self.targets)))


def make_batch(data: TrainingData, bridge: ActionBridge, starts: npt.NDArray[np.int64]) -> Batch:
    """Gather windows that begin at ``starts`` (B,)."""
    whole = starts[:, None] + bridge.block * np.arange(FRAMES)
    steps = starts[:, None] + np.arange(bridge.block * (FRAMES - 1))

    blocks = pack_blocks(bridge.normalise(data.raw[steps]), bridge.block)
    pictures = torch.from_numpy(data.pictures(data.at(whole)))
    return Batch(
        pixels=normalise_pixels(pictures, PIXEL_MEAN, PIXEL_STD),
        blocks=torch.from_numpy(blocks).float(),
        targets=torch.from_numpy(data.targets_at(whole)).float(),
    )


def place_of(model: Any) -> torch.device:
    """Where a model's parameters are."""
    place: torch.device = next(model.parameters()).device
    return place


def losses(
    model: Any, head: nn.Module | None, sigreg: nn.Module, batch: Batch
) -> dict[str, Tensor]:
    """The terms of the loss, each a scalar; ``head`` adds the two that read the true state."""
    info = model.encode({"pixels": batch.pixels, "action": batch.blocks})
    embedding = info["emb"]
    predicted = model.predict(embedding[:, :-1], info["act_emb"])
    embedding, predicted = embedding.float(), predicted.float()
    terms = {
        "prediction": (predicted - embedding[:, 1:]).square().mean(),
        "sigreg": sigreg(embedding.transpose(0, 1)),
    }
    if head is not None:
        terms["state"] = (head(embedding) - batch.targets).square().mean()
        terms["state_predicted"] = (head(predicted) - batch.targets[:, 1:]).square().mean()
    return terms


def fit_probe(
    model: Any, data: TrainingData, bridge: ActionBridge, rng: np.random.Generator
) -> nn.Linear:
    """Linear reading of the task's points from frozen embeddings, by least squares.

    Half of the rows are encoded pictures, half one-step predictions, since it reads both.
    """
    model.eval()
    rows, targets = [], []
    with torch.inference_mode():
        for _ in range(min(PROBE_BATCHES, 1 + len(data.train) // 128)):
            batch = make_batch(data, bridge, rng.choice(data.train, 128)).to(place_of(model))
            info = model.encode({"pixels": batch.pixels, "action": batch.blocks})
            predicted = model.predict(info["emb"][:, :-1], info["act_emb"])
            rows += [info["emb"][:, 1:].flatten(0, 1), predicted.flatten(0, 1)]
            targets += [batch.targets[:, 1:].flatten(0, 1)] * 2
    model.train()
    return least_squares(torch.cat(rows), torch.cat(targets))


def least_squares(rows: Tensor, targets: Tensor) -> nn.Linear:
    """The linear layer that reads ``targets`` (N, outputs) from embeddings ``rows`` (N, D), on the
    CPU.
    """
    rows, targets = rows.cpu(), targets.cpu()
    inputs = torch.cat([rows.double(), torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
    # A little ridge, in units of the embeddings' variance: dead dimensions must not blow up.
    gram = inputs.T @ inputs + 1e-6 * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, inputs.T @ targets.double()).float()
    probe = nn.Linear(len(solution) - 1, targets.shape[1])
    with torch.no_grad():
        probe.weight.copy_(solution[:-1].T)
        probe.bias.copy_(solution[-1])
    return probe


def evaluate(
    model: Any, probe: nn.Module, data: TrainingData, bridge: ActionBridge
) -> dict[str, float]:
    """Figures on held-out windows.

    ``normalised_error``: one-step prediction error over the mean squared distance of two random
    embeddings; ``unchanged``: the same for predicting that nothing moves; ``*_mm``: mean distance
    of the task's points as the probe reads them.
    """
    model.eval()
    probe = copy.deepcopy(probe).to(place_of(model))
    errors: list[dict[str, float]] = []
    embeddings = []
    with torch.inference_mode():
        for start in range(0, len(data.held_out), 256):
            batch = make_batch(data, bridge, data.held_out[start : start + 256]).to(place_of(model))
            info = model.encode({"pixels": batch.pixels, "action": batch.blocks})
            embedding = info["emb"]
            predicted = model.predict(embedding[:, :-1], info["act_emb"])
            embeddings.append(embedding.flatten(0, 1))
            seen = (probe(embedding) - batch.targets).cpu().double().numpy()
            foreseen = (probe(predicted) - batch.targets[:, 1:]).cpu().double().numpy()
            entry = {
                "normalised_error": float((predicted - embedding[:, 1:]).square().sum(-1).mean()),
                "unchanged": float((embedding[:, :-1] - embedding[:, 1:]).square().sum(-1).mean()),
            }
            for name, values in data.task.errors_mm(seen).items():
                entry[f"{name}_mm"] = float(values.mean())
            for name, values in data.task.errors_mm(foreseen).items():
                entry[f"{name}_predicted_mm"] = float(values.mean())
            errors.append(entry)
    model.train()
    spread = 2 * float(torch.cat(embeddings).var(dim=0).sum())
    means = {name: float(np.mean([entry[name] for entry in errors])) for name in errors[0]}
    for name in ("normalised_error", "unchanged"):
        means[name] /= spread
    return means


def recalibrate(
    model: Any, data: TrainingData, bridge: ActionBridge, rng: np.random.Generator
) -> None:
    """Set BatchNorm's running statistics to averages over training batches, weights as they are.

    The running ones trail behind weights that still change.
    """
    norms = [
        module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None
    with torch.no_grad():
        for _ in range(RECALIBRATION_BATCHES):
            batch = make_batch(data, bridge, rng.choice(data.train, 128)).to(place_of(model))
            info = model.encode({"pixels": batch.pixels, "action": batch.blocks})
            model.predict(info["emb"][:, :-1], info["act_emb"])
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum


def export(
    folder: Path,
    model: Any,
    probe: nn.Module,
    config: dict[str, Any],
    embodiment: Embodiment,
    data: TrainingData,
    weights: str,
) -> str:
    """Write ``config.json``, ``model.safetensors``, ``pose_probe.safetensors``,
    ``preprocessing.json``.

    :param weights: one of :data:`WEIGHTS`, in which the numbers are stored.
    :returns: SHA-256 of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = embodiment.scoring
    preprocessing = {
        "image_size": config["encoder"]["image_size"],
        "pixel_mean": list(PIXEL_MEAN),
        "pixel_std": list(PIXEL_STD),
        "action_mean": data.mean.tolist(),
        "action_std": data.std.tolist(),
        "action_meaning": spec.action.meaning,
        "action_scale": list(spec.action.scale),
        "step": spec.step,
        "block": spec.block,
        "history": spec.history,
        "resize": "keep",
        "objective": data.task.objective,
        "points": data.task.reading.document(),
    }
    for name, document in (("config", config), ("preprocessing", preprocessing)):
        (folder / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    for name, module in (("model", model), ("pose_probe", probe)):
        write_tensors(folder / f"{name}.safetensors", module, weights)
    return file_sha256(folder / "model.safetensors")


def write_tensors(path: Path, module: nn.Module, weights: str) -> None:
    """The tensors of a module as safetensors, those of floating point as ``weights`` says."""
    from safetensors.torch import save

    kind = {"float32": torch.float32, "float16": torch.float16}[weights]
    tensors = {
        name: value.detach().cpu().to(kind if value.is_floating_point() else value.dtype)
        for name, value in module.state_dict().items()
    }
    path.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the training."""
    parser.add_argument("--embodiment", default="pusht")
    parser.add_argument("--data", type=Path, help="folder; the task's if left out")
    parser.add_argument("--out", type=Path, help="folder; data/EMBODIMENT/world_model if left out")
    parser.add_argument(
        "--image-size",
        type=picture_size,
        metavar="SIZE",
        help="of the model's pictures: HEIGHTxWIDTH, or the side of a square; the task's if left "
        "out",
    )
    parser.add_argument(
        "--weights", choices=WEIGHTS, default=WEIGHTS[0], help="how the checkpoint stores them"
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--encoder", choices=ENCODERS, default="conv")
    parser.add_argument(
        "--state-weight",
        type=float,
        default=0.0,
        help="of the error of a linear reading of the true state; 0 is LeWorldModel's recipe",
    )
    parser.add_argument("--projections", type=int, default=256, help="of SIGReg")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto: a GPU when there is one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--resume", action="store_true", help="go on from OUT/training.pt")
    parser.add_argument(
        "--export", action="store_true", help="only write the checkpoint of OUT/training.pt"
    )


def picture_size(text: str) -> ImageSize:
    """A picture size from HEIGHTxWIDTH, or from the side of a square.

    :raises argparse.ArgumentTypeError: for anything else.
    """
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"'{text}'; expected HEIGHTxWIDTH or one side in pixels")
    height, width = int(sides[0]), int(sides[-1])
    return height if height == width else (height, width)


def run(args: argparse.Namespace) -> int:
    """Train, logging JSON lines to OUT/log.jsonl; returns the exit status."""
    from stable_worldmodel.wm.loss import SIGReg

    place = training_device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    embodiment = load_embodiment(args.embodiment)
    task = task_of(embodiment.name)
    network = task.network
    size = network.image_size if args.image_size is None else args.image_size
    args.data = args.data or task.data
    args.out = args.out or Path("data") / embodiment.name / "world_model"
    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / "training.pt"
    state = None
    if args.resume or args.export:
        if not saved.is_file():
            raise mismatch(
                ErrorCode.CHECKPOINT_MISSING,
                "--resume or --export",
                found=f"no {saved}",
                expected="that file",
            )
        state = torch.load(saved, map_location="cpu", weights_only=True)
    paths = list_episodes(args.data)
    data = prepare(load_episodes(paths, args.out / "images.raw"), embodiment, size)
    (args.out / "images.raw").unlink()
    bridge = ActionBridge.of(embodiment, data.mean, data.std)
    config = default_config(
        size,
        bridge.block * bridge.joints,
        dim=network.dim,
        encoder=args.encoder,
        channels=network.channels,
        stem=network.stem,
    )
    # Convolutions are faster so on a CPU; nothing else changes.
    model = build_lewm(config).to(place, memory_format=torch.channels_last)
    head = pose_probe(config["predictor"]["input_dim"], task.reading).to(place)
    sigreg = SIGReg(num_proj=args.projections).to(place)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=1e-3)

    def write_checkpoint(model: Any, probe: nn.Module) -> str:
        return export(args.out / "checkpoint", model, probe, config, embodiment, data, args.weights)

    first = 0
    if state is not None:
        for name, part in _resumable(model, head, optimizer).items():
            part.load_state_dict(state[name])
        first = int(state["step"])
        torch.set_rng_state(state["torch_rng"])
        rng = np.random.default_rng([args.seed, first])
    # Made from --steps also after --resume, so that a run can be given another end.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        args.learning_rate,
        total_steps=args.steps + 1,
        pct_start=0.05,
        last_epoch=first - 1,
    )
    with (args.out / "log.jsonl").open("a" if first else "w") as log:

        def report(**entry: object) -> None:
            log.write(json.dumps(entry) + "\n")
            log.flush()
            print(json.dumps(entry), flush=True)

        kinds = {kind: sum(path.name.startswith(kind) for path in paths) for kind in EPISODE_KINDS}
        report(
            event="start",
            parameters=sum(p.numel() for p in model.parameters()),
            windows=len(data.train),
            held_out=len(data.held_out),
            episodes=kinds,
            arguments={key: str(value) for key, value in vars(args).items()},
        )
        if args.export:
            fresh = np.random.default_rng([args.seed, first])
            recalibrate(model, data, bridge, fresh)
            probe = fit_probe(model, data, bridge, fresh)
            figures = {k: round(v, 5) for k, v in evaluate(model, probe, data, bridge).items()}
            sha256 = write_checkpoint(model, probe)
            report(event="export", step=first, sha256=sha256, **figures)
            return 0
        began = time.monotonic()
        sums: dict[str, float] = {}
        reported = first
        for step in tracked("steps", range(first, args.steps), args.steps):
            batch = make_batch(data, bridge, rng.choice(data.train, args.batch)).to(place)
            with torch.autocast(place.type, torch.bfloat16):
                terms = losses(model, head if args.state_weight > 0 else None, sigreg, batch)
            loss = terms["prediction"] + SIGREG_WEIGHT * terms["sigreg"]
            if args.state_weight > 0:
                loss = loss + args.state_weight * (terms["state"] + terms["state_predicted"])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            done = step + 1
            if done % args.evaluate_every == 0 or done == args.steps:
                fresh = np.random.default_rng([args.seed, done])
                recalibrate(model, data, bridge, fresh)
                probe = fit_probe(model, data, bridge, fresh)
                count, reported = done - reported, done
                report(
                    step=done,
                    seconds=round(time.monotonic() - began, 1),
                    **{name: round(value / count, 5) for name, value in sums.items()},
                    **{k: round(v, 5) for k, v in evaluate(model, probe, data, bridge).items()},
                )
                sums = {}
                _save(saved, model, head, optimizer, done, [p.name for p in paths])
                sha256 = write_checkpoint(model, probe)
        report(event="end", sha256=sha256)
    return 0


def _resumable(model: Any, head: nn.Module, optimizer: Any) -> dict[str, Any]:
    return {"model": model, "head": head, "optimizer": optimizer}


def _save(
    path: Path,
    model: Any,
    head: nn.Module,
    optimizer: Any,
    step: int,
    episodes: list[str],
) -> None:
    parts = _resumable(model, head, optimizer)
    content = {name: part.state_dict() for name, part in parts.items()}
    extra = {"step": step, "episodes": episodes, "torch_rng": torch.get_rng_state()}
    partial = path.with_suffix(".partial")
    torch.save({**content, **extra}, partial)
    partial.replace(path)


def main() -> int:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description="Train the small LeWorldModel.")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
