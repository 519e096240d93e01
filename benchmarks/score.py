"""``score_candidates`` over DDS against the upstream model called directly in this process, with
the same random weights of the published size (18 M parameters), 5 blocks a candidate.

    python benchmarks/score.py --json score.json
    python benchmarks/score.py --backend openvino --threads 1

Each sample is a fresh observation: the node encodes it when it arrives, upstream with every call.
Both are timed in turn. Writes ``rows[]``: backend, precision, threads, candidates, service_ms,
upstream_ms, ratio, max_relative_error, same_choice, ros_ms_p95 (round trip without the model),
rss_mb; ``growth[]``: service_ms and rss_mb up to 4,096 candidates; ``busy``: 64 candidates with two
other busy processes on the machine. Medians; ms.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from sensor_msgs.msg import Image

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.msg import Observation as ObservationMsg
from worldforge_ros.observation import Observation
from worldforge_ros.process import keep_freed_memory, quiet_openmp
from worldforge_ros.ros import convert, qos
from worldforge_ros.scorers.architecture import build_lewm, published_config
from worldforge_ros.scorers.encoders import PIXEL_MEAN, PIXEL_STD
from worldforge_ros.scorers.engines import Pixels
from worldforge_ros.simulation.pusht import PushTSimulation
from worldforge_ros.srv import ScoreCandidates

BLOCKS = 5
COMPARED = (1, 8, 32, 64, 300)
GROWTH = (1, 8, 64, 300, 1024, 4096)
PIXELS = Pixels(224, PIXEL_MEAN, PIXEL_STD)
PUSHT = load_embodiment("pusht")


def make_checkpoint(folder: Path) -> Any:
    """Random weights of the published architecture; the model itself is upstream's."""
    torch.manual_seed(0)
    config = published_config(10)
    model = build_lewm(config)
    for name, value in model.named_parameters():
        # Zero at first, so that actions would not matter.
        if "adaLN" in name:
            torch.nn.init.normal_(value, std=0.02)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(model.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    card = {
        "image_size": 224,
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "action_mean": [0.0, 0.0],
        "action_std": [0.2, 0.2],
        "action_meaning": "relative",
        "action_scale": [10.0, 10.0],
        "step": 0.1,
        "block": 5,
    }
    (folder / "preprocessing.json").write_text(json.dumps(card))
    return model.eval().requires_grad_(False)


class StaleError(Exception):
    """The node's newest observation was too old."""


class Scene:
    """A PushT world that moves a little before each sample."""

    def __init__(self) -> None:
        self._world = PushTSimulation()
        self._world.reset(seed=9000)
        self.goal = self._world.goal_image()

    def next(self, stamp: int) -> Observation:
        """The next observation."""
        self._world.advance(self._world.position + 0.003, 10)
        world = self._world
        return Observation(stamp, {"top": world.image()}, world.position, world.velocity)


class Service:
    """A score node in a process of its own, and this process's client."""

    def __init__(self, folder: Path, **parameters: Any) -> None:
        settings = [
            item
            for name, value in {"model_path": folder, **parameters}.items()
            for item in ("-p", f"{name}:={value}")
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worldforge_ros.nodes.score_node", "--ros-args", *settings],
            stdout=subprocess.DEVNULL,
        )
        self.node = Node("score_benchmark")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self._client = self.node.create_client(ScoreCandidates, "score_candidates")
        self._observations = self.node.create_publisher(ObservationMsg, "observation", qos.CHUNK)
        self._goals = self.node.create_publisher(Image, "goal_image", qos.LATCHED)
        self._wait_until_active()

    def _wait_until_active(self) -> None:
        states = self.node.create_client(GetState, "score_node/get_state")
        deadline = time.monotonic() + 180.0
        while time.monotonic() < deadline and self.process.poll() is None:
            if states.wait_for_service(1.0):
                future = states.call_async(GetState.Request())
                self.executor.spin_until_future_complete(future, 5.0)
                reply = future.result() if future.done() else None
                if reply and reply.current_state.id == State.PRIMARY_STATE_ACTIVE:
                    return
        raise SystemExit("score_node did not become active")

    def show(self, observation: Observation, goal: Any, settle: float) -> None:
        """Let the node see a scene and give it time to encode."""
        stamp = observation.stamp
        self._goals.publish(convert.image_to_msg(goal, stamp, "camera_top"))
        self._observations.publish(convert.observation_to_msg(observation, PUSHT, "base"))
        deadline = time.monotonic() + settle
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.01)

    def score(self, blocks: np.ndarray[Any, Any]) -> tuple[float, float, np.ndarray[Any, Any]]:
        """Round trip and share of the model in ms, and the costs."""
        request = ScoreCandidates.Request(
            candidates=convert.tensor_to_msg(blocks[None]),
            action_space=ScoreCandidates.Request.MODEL,
        )
        started = time.perf_counter()
        future = self._client.call_async(request)
        # Not spin_until_future_complete, which in rclpy 7.1.6 keeps every finished task.
        while not future.done() and time.perf_counter() - started < 120.0:
            self.executor.spin_once(timeout_sec=1.0)
        total = 1e3 * (time.perf_counter() - started)
        reply = future.result()
        if reply is not None and reply.error_code == "OBSERVATION_STALE":
            raise StaleError
        if reply is None or not reply.success:
            raise SystemExit(f"no score: {reply and reply.message}")
        metadata = convert.from_key_values(reply.metadata, "metadata")
        if metadata["history_cached"] != "1 of 1":
            raise SystemExit("the observation was not encoded in time: raise --settle")
        return total, 1e3 * float(metadata["model_latency_s"]), np.asarray(reply.scores)

    def memory(self) -> float:
        """Resident memory of the node in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(item for item in status.splitlines() if item.startswith("VmRSS"))
        return float(line.split()[1]) / 1024

    def close(self) -> None:
        """Stop the node."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30.0)
        self.executor.shutdown()
        self.node.destroy_node()


def upstream(
    model: Any, observation: Observation, goal: Any, blocks: np.ndarray[Any, Any]
) -> tuple[float, np.ndarray[Any, Any]]:
    """ms and costs of upstream's ``get_cost`` on raw pictures."""
    started = time.perf_counter()
    samples = len(blocks)
    now = PIXELS.tensor(observation.images["top"][np.newaxis])
    target = PIXELS.tensor(goal[np.newaxis])
    info = {
        "pixels": now.expand(1, samples, *now.shape),
        "goal": target.expand(1, samples, *target.shape),
        "action": torch.zeros(1, samples, 1, blocks.shape[2]),
    }
    with torch.no_grad():
        costs = model.get_cost(info, torch.from_numpy(blocks).float()[None])[0]
    return 1e3 * (time.perf_counter() - started), costs.numpy()


def compare(
    service: Service, model: Any, scene: Scene, count: int, samples: int, settle: float
) -> dict[str, Any]:
    """One row: both in turn on the same scenes."""
    rng = np.random.default_rng(count)
    ours, theirs, ros, errors, same = [], [], [], [], []
    for turn in range(samples + 1):
        observation = scene.next(service.node.get_clock().now().nanoseconds)
        blocks = rng.normal(size=(count, BLOCKS, 10)).astype(np.float32)
        expected_ms, expected = upstream(model, observation, scene.goal, blocks)
        fresh = service.node.get_clock().now().nanoseconds
        service.show(
            Observation(fresh, observation.images, observation.position, observation.velocity),
            scene.goal,
            settle,
        )
        total, inside, costs = service.score(blocks)
        if turn:
            ours.append(total)
            theirs.append(expected_ms)
            ros.append(total - inside)
        errors.append(float(np.max(np.abs(costs - expected) / np.abs(expected))))
        same.append(int(np.argmin(costs)) == int(np.argmin(expected)))
    return {
        "candidates": count,
        "service_ms": round(float(np.median(ours)), 2),
        "upstream_ms": round(float(np.median(theirs)), 2),
        "ratio": round(float(np.median(ours) / np.median(theirs)), 3),
        "max_relative_error": float(f"{max(errors):.2e}"),
        "same_choice": f"{sum(same)} of {len(same)}",
        "ros_ms_p95": round(float(np.percentile(ros, 95)), 2),
        "rss_mb": round(service.memory()),
    }


def timed(service: Service, scene: Scene, count: int, samples: int, settle: float) -> float:
    """Median round trip in ms without upstream."""
    blocks = np.random.default_rng(1).normal(size=(count, BLOCKS, 10)).astype(np.float32)
    found: list[float] = []
    while len(found) < samples + 1:
        stamp = service.node.get_clock().now().nanoseconds
        service.show(scene.next(stamp), scene.goal, settle)
        try:
            found.append(service.score(blocks)[0])
        except StaleError:
            print(f"{count} candidates: the observation was too old, once more", flush=True)
    return round(float(np.median(found[1:])), 2)


def busy_machine(run: Callable[[], float]) -> float:
    """What ``run`` gives while two processes compute."""
    burn = "import numpy as n\nx = n.random.rand(400, 400)\nwhile True: x = (x @ x) % 1.0"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    others = [subprocess.Popen([sys.executable, "-c", burn], env=environment) for _ in range(2)]
    try:
        time.sleep(2.0)
        return run()
    finally:
        for other in others:
            other.kill()
            other.wait()


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of rows."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=160).print(table)


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", nargs="+", default=["torch", "openvino"])
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--candidates", nargs="+", type=int, default=list(COMPARED))
    parser.add_argument("--samples", type=int, default=9, help="timed samples of a row")
    parser.add_argument("--settle", type=float, default=0.15, help="s to encode an observation")
    parser.add_argument("--quick", action="store_true", help="no growth, no busy machine")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    quiet_openmp()
    keep_freed_memory()
    warnings.simplefilter("ignore")
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    rclpy.init()
    gc.freeze()
    result: dict[str, Any] = {"rows": [], "growth": [], "busy": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "lewm"
        model = make_checkpoint(folder)
        for backend in args.backend:
            for threads in args.threads:
                torch.set_num_threads(threads)
                scene = Scene()
                named = {"backend": backend, "precision": args.precision, "threads": threads}
                service = Service(
                    folder,
                    backend=backend,
                    precision=args.precision,
                    num_threads=threads,
                    warmup_candidates=64,
                    warmup_blocks=BLOCKS,
                )
                try:
                    for count in args.candidates:
                        row = compare(service, model, scene, count, args.samples, args.settle)
                        result["rows"].append({**named, **row})
                        print(json.dumps(result["rows"][-1]), flush=True)
                    for count in () if args.quick else GROWTH:
                        ms = timed(service, scene, count, 3, args.settle)
                        row = {"candidates": count, "service_ms": ms}
                        rss = round(service.memory())
                        result["growth"].append({**named, **row, "rss_mb": rss})
                    if not args.quick:
                        quiet = timed(service, scene, 64, args.samples, args.settle)
                        busy = busy_machine(
                            lambda service=service, scene=scene: timed(  # type: ignore[misc]
                                service, scene, 64, args.samples, 2 * args.settle
                            )
                        )
                        ratio = round(busy / quiet, 2)
                        result["busy"].append(
                            {**named, "quiet_ms": quiet, "busy_ms": busy, "ratio": ratio}
                        )
                finally:
                    service.close()
    rclpy.shutdown()
    show("service against upstream, ms", result["rows"])
    for name in ("growth", "busy"):
        if result[name]:
            show(name, result[name])
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
