"""Score candidates of your own once: which one does the world model think ends nearest to the goal?

In this process and without ROS, or with --live by the running score_node.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldforge_ros.embodiment import Embodiment, load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.observation import (
    ImageArray,
    Observation,
    check_goal,
    check_image,
    seconds_to_ns,
)
from worldforge_ros.parameters import GivenParameters
from worldforge_ros.resources import PACKAGE, resolve_path
from worldforge_ros.safety.workspace import workspace_of
from worldforge_ros.scorers.contract import ActionSpace, one_batch
from worldforge_ros.sourced import ros_module

FloatArray = npt.NDArray[np.floating]

MOST_CANDIDATES, MOST_ACTIONS = 65536, 4096
SHOWN = 20


@dataclass(frozen=True, eq=False)
class Question:
    """What is to be scored; see the options of :func:`add_arguments`.

    ``goal`` is None, and ``history`` empty, for those that a running score_node has.
    """

    history: list[Observation]
    goal: ImageArray | None
    candidates: FloatArray
    action_history: FloatArray | None
    objective: str
    space: ActionSpace


@dataclass(frozen=True, eq=False)
class Answer:
    """Costs (S,) of the candidates, and what is known of the model and of how long it took, s.

    ``seen`` is the observation to draw into, if any; ``set_points`` (S, H, J) in m or rad what to
    draw.
    """

    costs: npt.NDArray[np.float32]
    metadata: Mapping[str, str]
    latency: float
    seen: Observation | None
    set_points: FloatArray | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``worldforge score``."""
    parser.add_argument(
        "--candidates",
        type=Path,
        required=True,
        metavar="C.npy",
        help="(S, H, joints) set-points in m or rad, float, in the embodiment's joint order",
    )
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="PNG",
        help="what the world model's camera sees; repeat for a model that needs several frames, "
        "oldest first and one block apart; with --live: score_node's own if left out",
    )
    parser.add_argument(
        "--position",
        type=float,
        nargs="+",
        action="append",
        default=[],
        metavar="Q",
        help="joint positions at the picture, m or rad; once for each --image",
    )
    parser.add_argument(
        "--velocity",
        type=float,
        nargs="+",
        metavar="V",
        help="joint velocities at the last picture, m/s or rad/s; at rest if left out",
    )
    parser.add_argument(
        "--goal", type=Path, metavar="PNG", help="the state to bring about, from the same camera"
    )
    parser.add_argument(
        "--action-history",
        type=Path,
        metavar="A.npy",
        help="(T, joints) set-points executed between the pictures, for a model that needs several",
    )
    parser.add_argument(
        "--action-space",
        choices=[space.value for space in ActionSpace],
        default=ActionSpace.EMBODIMENT.value,
        help="model: the checkpoint's own blocks (S, T, block * joints)",
    )
    parser.add_argument("--objective", default="", help="the model's own if left out")
    parser.add_argument("--embodiment", default="pusht", help="name or YAML file")
    parser.add_argument(
        "--world-model", help="folder or run name; models/EMBODIMENT/world_model if left out"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--live", action="store_true", help="ask the running score_candidates service"
    )
    parser.add_argument("--namespace", default="", help="of the service, with --live")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds, with --live")
    parser.add_argument(
        "--picture", type=Path, default=Path("score.png"), help="picture to write, with a scene"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the costs here")


def run(args: argparse.Namespace) -> int:
    """Score, print, draw; 0 on success."""
    embodiment = load_embodiment(args.embodiment)
    question = read_question(args, embodiment)
    answer = _ask(args, question, embodiment) if args.live else _score(args, question, embodiment)
    result = figures(answer)
    _print(result, answer)
    written = []
    if answer.seen is not None and answer.set_points is not None:
        written.append(_draw(args.picture, answer, embodiment))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        written.append(args.json)
    if written:
        print("wrote " + ", ".join(str(path) for path in written))
    return 0


def read_question(args: argparse.Namespace, embodiment: Embodiment) -> Question:
    """What the options ask.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a file that cannot be read and for options
        that are missing, and what a score node answers to such pictures and tensors.
    """
    joints = len(embodiment.joints)
    spec = embodiment.scoring
    if not args.live:
        for name in ("image", "goal"):
            if not getattr(args, name):
                raise _missing(f"--{name}", "a picture; or --live, to ask the running score_node")
    if args.image and len(args.position) != len(args.image):
        raise _missing(
            "--position",
            f"{joints} numbers ({', '.join(embodiment.joint_names)}) for each --image",
            f"given {len(args.position)} times for {len(args.image)} pictures",
        )
    if args.position and not args.image:
        raise _missing("--image", "one for each --position")
    history = []
    for index, (path, position) in enumerate(zip(args.image, args.position, strict=True)):
        last = index == len(args.image) - 1
        velocity = args.velocity if last and args.velocity is not None else [0.0] * joints
        for option, values in (("--position", position), ("--velocity", velocity)):
            if len(values) != joints or not np.isfinite(values).all():
                raise _missing(
                    option, f"{joints} finite numbers ({', '.join(embodiment.joint_names)})", values
                )
        image = read_picture(path, "--image")
        check_image(image, spec.camera, embodiment)
        stamp = seconds_to_ns((index + 1) * spec.block_duration)
        history.append(
            Observation(stamp, {spec.camera: image}, np.array(position), np.array(velocity))
        )
    goal = None if args.goal is None else read_picture(args.goal, "--goal")
    if goal is not None:
        check_goal(goal, spec.camera, embodiment)
    values = _read_array(args.candidates, "--candidates")
    if values.ndim == 3:
        values = values[np.newaxis]
    return Question(
        history,
        goal,
        one_batch(values, MOST_CANDIDATES, MOST_ACTIONS),
        None
        if args.action_history is None
        else _read_array(args.action_history, "--action-history"),
        args.objective,
        ActionSpace(args.action_space),
    )


def read_picture(path: Path, option: str) -> ImageArray:
    """An image file as (height, width, 3) uint8 RGB; nothing is resized.

    :raises WorldForgeError: ``INVALID_ARGUMENT``.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            option,
            found=f"{path} ({error})",
            expected="a picture, such as a PNG",
        ) from error


def figures(answer: Answer) -> dict[str, Any]:
    """The answer as plain numbers: ``costs`` (null where there is none), ``order`` cheapest first,
    ``best_index``, ``margin``, ``latency_s`` and ``metadata``.
    """
    known = np.flatnonzero(np.isfinite(answer.costs))
    order = [int(i) for i in known[np.argsort(answer.costs[known], kind="stable")]]
    costs = [float(cost) if math.isfinite(cost) else None for cost in answer.costs]
    best = [answer.costs[i] for i in order[:2]]
    return {
        "lower_is_better": True,
        "costs": costs,
        "order": order,
        "best_index": order[0] if order else None,
        "margin": float(best[1] - best[0]) if len(best) == 2 else None,
        "latency_s": answer.latency,
        "metadata": dict(answer.metadata),
    }


def _score(args: argparse.Namespace, question: Question, embodiment: Embodiment) -> Answer:
    from worldforge_ros.scorers.loading import load_scorer
    from worldforge_ros.scorers.parameters import declare

    assert question.goal is not None
    shipped = f"package://{PACKAGE}/models/{embodiment.name}/world_model"
    given = args.world_model or shipped
    values = {"model_path": str(resolve_path(given)), "device": args.device}
    config = declare(GivenParameters("score_node", values), args.threads, os.environ)
    scorer = load_scorer(config, embodiment)
    started = time.monotonic()
    scores = scorer.score(
        question.history,
        question.goal,
        question.candidates,
        question.action_history,
        question.objective,
        question.space,
    )
    latency = time.monotonic() - started
    seen = question.history[-1]
    set_points = question.candidates
    if question.space is ActionSpace.MODEL:
        mean, std = scorer.bridge.mean, scorer.bridge.std
        blocks = question.candidates
        if not scorer.blocks_are_normalised:
            width = scorer.block
            blocks = (blocks - np.tile(mean, width)) / np.tile(std, width)
        set_points = scorer.bridge.blocks_to_setpoints(blocks, seen.position, seen.velocity)
    return Answer(scores.costs, scores.metadata, latency, seen, set_points)


def _ask(args: argparse.Namespace, question: Question, embodiment: Embodiment) -> Answer:
    call = ros_module("worldforge_ros.ros.score_call")
    reply = call.score_live(question, embodiment, args.namespace, args.timeout)
    drawn = question.candidates if question.space is ActionSpace.EMBODIMENT else None
    return Answer(reply.costs, reply.metadata, reply.latency, reply.seen, drawn)


def _draw(path: Path, answer: Answer, embodiment: Embodiment) -> Path:
    from PIL import Image

    from worldforge_ros.drawing.plan import PlanView, draw_plan, pixels_of

    assert answer.seen is not None
    assert answer.set_points is not None
    result = figures(answer)
    candidates = answer.set_points
    count, horizon, joints = candidates.shape
    best = result["best_index"]
    view = PlanView(
        cycle=0,
        outcome="OK",
        image=answer.seen.images[embodiment.scoring.camera],
        joint_names=embodiment.joint_names,
        candidates=candidates,
        costs=answer.costs,
        reachable=np.ones(count, dtype=np.bool_),
        sources=(),
        chosen=-1 if best is None else best,
        margin=math.nan if result["margin"] is None else result["margin"],
        plan_latency=answer.latency,
        gate_mode=None,
    )
    pixels = None
    projection = embodiment.cameras[embodiment.scoring.camera].projection
    spec = embodiment.workspace
    # Links would need the robot's URDF; the joints are plotted then.
    if projection is not None and spec is not None and all(e.joints for e in spec.end_effectors):
        workspace = workspace_of(embodiment, None)
        assert workspace is not None
        points = workspace.points(candidates.reshape(count * horizon, joints).astype(np.float64))
        pixels = pixels_of(projection, points.reshape(count, horizon, -1, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_plan(view, pixels)).save(path)
    return path


def _print(result: Mapping[str, Any], answer: Answer) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    model = answer.metadata.get("model_id", "the world model")
    objective = answer.metadata.get("objective", "")
    title = f"Costs by {model}" + (f", {objective}" if objective else "") + ", lower is better"
    table = Table(title=title)
    for heading in ("rank", "candidate", "cost", "above the best"):
        table.add_column(heading, justify="right")
    order: Sequence[int] = result["order"]
    for rank, index in enumerate(order[:SHOWN], start=1):
        cost = float(answer.costs[index])
        above = cost - float(answer.costs[order[0]])
        table.add_row(str(rank), str(index), f"{cost:.6g}", f"{above:.4g}")
    console.print(table)
    if len(order) > SHOWN:
        console.print(f"and {len(order) - SHOWN} more; --json has all")
    unscored = [index for index, cost in enumerate(result["costs"]) if cost is None]
    if unscored:
        console.print(f"without a cost: {', '.join(str(index) for index in unscored)}")
    console.print(f"{len(result['costs'])} candidates in {answer.latency * 1000:.0f} ms")


def _read_array(path: Path, option: str) -> FloatArray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            option,
            found=f"{path} ({error})",
            expected="a file that numpy.save wrote",
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        found = f"{path} of {getattr(values, 'dtype', type(values).__name__)}"
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, option, found=found, expected="an array of numbers"
        )
    return values.astype(np.float64)


def _missing(option: str, expected: str, found: object = "missing") -> WorldForgeError:
    return mismatch(ErrorCode.INVALID_ARGUMENT, option, found=found, expected=expected)
