"""How many steps ahead may a world model be believed, on what was recorded?

Its predictions with the recorded actions, fed back (open loop) and one step from what was seen
(closed loop), beside what says nothing: that nothing moved, and another episode's actions.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldforge_ros.embodiment import Embodiment
from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.evaluation.recordings import Clips, add_clips
from worldforge_ros.parameters import GivenParameters, ParameterValue
from worldforge_ros.replay.manifest import now, write_manifest
from worldforge_ros.resources import PACKAGE, resolve_path

if TYPE_CHECKING:
    from worldforge_ros.evaluation.latents import Clip
    from worldforge_ros.scorers.latent import FrameClip, LatentModel

MODELS = ("lewm", "jepa_wms", "vjepa2_ac")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``worldforge drift``."""
    add_clips(parser)
    parser.add_argument(
        "--world-model",
        help="folder or run name; a name of hubconf.py for jepa_wms and vjepa2_ac; "
        "models/EMBODIMENT/world_model if left out",
    )
    parser.add_argument("--scorer", choices=MODELS, default="lewm", help="family of the model")
    parser.add_argument(
        "--repository", default="", help="jepa_wms, vjepa2_ac: folder or owner/name:commit"
    )
    parser.add_argument(
        "--trust-repository", action="store_true", help="allow the code of the repository to run"
    )
    parser.add_argument("--longest", type=int, default=17, help="most blocks ahead")
    parser.add_argument("--starts", type=int, default=4, help="starts in an episode")
    parser.add_argument("--seed", type=int, default=0, help="of bootstrap and shuffling")
    parser.add_argument(
        "--write-card",
        action="store_true",
        help="write drift.json beside the checkpoint: the planner then scores no further",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/drift"), help="folder of the results"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; 0 also where there is no verdict, which the figures say."""
    from worldforge_ros.evaluation.drift import document, plot_drift, print_drift
    from worldforge_ros.evaluation.latents import drift

    for name in ("longest", "starts"):
        if getattr(args, name) < 1:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                f"--{name}",
                found=getattr(args, name),
                expected="1 or more",
            )
    if args.write_card and args.scorer != "lewm":
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "--write-card",
            found=f"with --scorer {args.scorer}",
            expected="lewm, whose checkpoint is a folder of yours",
        )
    started = now()
    clips = Clips(args)
    # Before the work, whose results could not be kept otherwise.
    args.out.mkdir(parents=True, exist_ok=True)
    embodiment = clips.embodiment
    model = load_model(args, embodiment)
    found = drift(
        encoded(model, clips),
        model.ahead,
        metric=model.metric,
        longest=args.longest,
        starts=args.starts,
        seed=args.seed,
    )
    block = embodiment.scoring.block_duration
    figures: dict[str, Any] = {
        "model_id": model.model_id,
        "sha256": model.sha256,
        "embodiment": embodiment.name,
        **document(found, block),
        "source": clips.sources,
        "failed": clips.failed,
        "seed": args.seed,
    }
    outputs = [args.out / "drift.json", plot_drift(args.out / "drift.png", found, block)]
    for path in (outputs[0], args.json):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    settings = {key: str(value) for key, value in sorted(vars(args).items())}
    # Printed first: where there is no verdict, there is no card either.
    print_drift(found, block)
    for path, error in clips.failed.items():
        print(f"not read, or not to its end: {path}: {error}")
    if args.write_card:
        outputs.append(_write_card(args, model, embodiment, figures))
    write_manifest(
        args.out / "manifest.json",
        command="drift",
        settings=settings,
        inputs=args.recordings,
        outputs=outputs,
        started=started,
    )
    print("wrote " + ", ".join(str(path) for path in outputs))
    return 0


def _write_card(
    args: argparse.Namespace, model: LatentModel, embodiment: Embodiment, figures: dict[str, Any]
) -> Path:
    from worldforge_ros.scorers.cards import DRIFT_FILE, DriftCard
    from worldforge_ros.scorers.checkpoint import find_checkpoint

    blocks = figures["drift_horizon_blocks"]
    if blocks is None:
        raise mismatch(
            ErrorCode.DATASET_INVALID,
            "drift horizon to write down",
            found=f"none ({figures['reason']})",
            expected="a measured one",
        )
    path = find_checkpoint(str(_folder(args, embodiment))).folder / DRIFT_FILE
    DriftCard(
        model_id=model.model_id,
        sha256=model.sha256,
        embodiment=embodiment.name,
        block_seconds=embodiment.scoring.block_duration,
        drift_horizon_blocks=blocks,
        at_least=figures["at_least"],
        episodes=figures["episodes"],
        source={**figures["source"], "reason": figures["reason"]},
    ).write(path)
    return path


def encoded(model: LatentModel, clips: Iterable[FrameClip]) -> list[Clip]:
    """Clips as latents and blocks; pictures are let go of one by one."""
    import numpy as np

    from worldforge_ros.evaluation.latents import Clip

    return [
        Clip(np.asarray(model.latents(clip)), model.actions(clip), clip.states, clip.episode)
        for clip in clips
    ]


def _folder(args: argparse.Namespace, embodiment: Embodiment) -> Path:
    shipped = f"package://{PACKAGE}/models/{embodiment.name}/world_model"
    return resolve_path(args.world_model or shipped)


def load_model(args: argparse.Namespace, embodiment: Embodiment) -> LatentModel:
    """The world model as the measures see it.

    :raises WorldForgeError: what loading raises.
    """
    if args.scorer == "vjepa2_ac":
        from worldforge_ros.scorers.vjepa2_ac import VJepa2AcOptions, load_vjepa2_ac

        options = VJepa2AcOptions(
            model=args.world_model or "vjepa2_ac_vit_giant",
            repository=args.repository,
            trust_repository=args.trust_repository,
            device=args.device,
            threads=args.threads,
        )
        return load_vjepa2_ac(embodiment, options)
    from worldforge_ros.scorers.loading import load_scorer
    from worldforge_ros.scorers.parameters import declare

    values: dict[str, ParameterValue] = {
        "scorer": args.scorer,
        "device": args.device,
        "model_path": str(_folder(args, embodiment))
        if args.scorer == "lewm"
        else args.world_model or "",
        "repository": args.repository,
        "trust_repository": args.trust_repository,
        # Nothing is compared with a goal here.
        "proprio_weight": 0.1 if args.scorer == "lewm" else 0.0,
    }
    config = declare(GivenParameters("drift", values), args.threads, os.environ)
    scorer = load_scorer(config, embodiment)
    if args.scorer == "lewm":
        from worldforge_ros.scorers.lewm import LeWMScorer
        from worldforge_ros.scorers.lewm_latents import LeWMLatents

        assert isinstance(scorer, LeWMScorer)
        return LeWMLatents(scorer)
    from worldforge_ros.scorers.jepa_latents import JepaWmsLatents
    from worldforge_ros.scorers.jepa_wms import JepaWmsScorer

    assert isinstance(scorer, JepaWmsScorer)
    return JepaWmsLatents(scorer, embodiment)
