"""Documents of replayed bags as worldforge_ros.replay makes them, with made-up figures."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from worldforge_ros.replay.tally import Tally

JOINTS = ["shoulder_pan", "shoulder_lift", "elbow", "gripper"]
UNITS = ["rad", "rad", "rad", "m"]
SPREAD = np.array([0.31, 0.24, 0.4, 0.02])
HORIZON, STEP = 16, 0.1
CANDIDATES = 32


def tally(values: Any) -> dict[str, Any]:
    made = Tally()
    made.extend(values)
    return made.document()


def failed_episode(name: str) -> dict[str, Any]:
    """A bag that could not be read."""
    message = f"bags/{name}/{name}_0.mcap is 118 bytes; expected a whole MCAP file"
    problem = {"code": "BAG_INVALID", "message": message}
    return {
        "schema": "worldforge_ros/replay_episode/1",
        "episode": name,
        "bag": {"path": f"bags/{name}", "name": name, "problems": [problem]},
        "failed": problem,
    }


def episode(
    name: str,
    seed: int = 0,
    *,
    duration: float = 60.0,
    error: float = 1.0,
    still: int | None = None,
) -> dict[str, Any]:
    """A bag of ``duration`` seconds at two plans a second.

    ``error`` multiplies the policy's errors; joint ``still`` never moves.
    """
    rng = np.random.default_rng(seed)
    cycles = int(duration * 2) - 2
    spread = SPREAD.copy()
    if still is not None:
        spread[still] = 0.0
    times = np.arange(cycles) * 0.5 + 1.0
    cost = 0.08 + 0.5 * np.exp(-times / 20.0) + rng.normal(0, 0.02, cycles)
    rank = 1 + rng.binomial(CANDIDATES, 0.25 + 0.1 * rng.random(), cycles)
    margin = rng.exponential(0.01, cycles)
    first_error = error * rng.gamma(4.0, 0.03, cycles)
    age = 0.02 + rng.gamma(2.0, 0.006, cycles)
    approved = rng.random(cycles) > 0.04
    rejected = int((~approved).sum())
    stop_times = times[~approved][:8]
    topics = [
        health("front", "/front/image_raw", "sensor_msgs/msg/Image", duration, 10.0, rng),
        health("wrist", "/wrist/image_raw", "sensor_msgs/msg/Image", duration, 10.0, rng),
        health("joint_states", "/joint_states", "sensor_msgs/msg/JointState", duration, 50.0, rng),
        health("plan_report", "/plan_report", "worldforge_ros/msg/PlanReport", duration, 2.0, rng),
    ]
    topics[1]["gap_max_s"], topics[1]["gap_max_at_s"] = 1.42, 31.7
    topics[3]["definition"] = "changed"
    gap = {"code": "BAG_GAP", "message": "topic /wrist/image_raw is silent for 1.42 s at 31.7 s"}
    realised = 0.7 * cost + rng.normal(0, 0.05, cycles)
    return {
        "schema": "worldforge_ros/replay_episode/1",
        "episode": name,
        "bag": {
            "path": f"bags/{name}",
            "name": name,
            "sha256": hashlib.sha256(name.encode()).hexdigest(),
            "storage": "mcap",
            "start_ns": 1_700_000_000_000_000_000,
            "end_ns": 1_700_000_000_000_000_000 + int(duration * 1e9),
            "duration_s": duration,
            "messages": int(duration * 72),
            "size_bytes": int(duration * 290_000),
            "complete": True,
            "problems": [],
        },
        "topics": {topic["role"]: topic["topic"] for topic in topics},
        "health": {
            "topics": topics,
            "problems": [gap],
            "start_ns": 1_700_000_000_000_000_000,
            "end_ns": 1_700_000_000_000_000_000 + int(duration * 1e9),
            "duration_s": duration,
            "messages": int(duration * 72),
        },
        "synchronisation": {
            "source": "sensors",
            "pictures": int(duration * 10),
            "observations": int(duration * 10) - 9,
            "age_s": tally(age),
            "joint_offset_s": tally(rng.normal(0.0, 0.004, cycles)),
            "skipped": {"CAMERA_STALE": 7, "JOINT_STATE_STALE": 2},
        },
        "cycles": {
            "started": cycles,
            "waiting": 2,
            "outcomes": {"OK": cycles - 3, "NO_REACHABLE_CANDIDATE": 3},
        },
        "policy": {
            "joints": list(JOINTS),
            "units": list(UNITS),
            "step_s": STEP,
            "horizon": HORIZON,
            "actions_source": "approved",
            "spread": spread.tolist(),
            "errors": {
                "first": errors(cycles, 0.10 * error, 0.045 * error, spread, rng),
                "chosen": errors(cycles, 0.09 * error, 0.040 * error, spread, rng),
                "nearest": errors(cycles, 0.06 * error, 0.024 * error, spread, rng),
                "hold": errors(cycles, 0.05, 0.085, spread, rng),
                "repeat": errors(cycles - 16, 0.07, 0.105, spread, rng),
            },
            "overlap": {
                "count": cycles * 11,
                "sum_sq": (cycles * 11 * (0.14 * spread) ** 2).tolist(),
            },
            "smoothness": {
                "chosen": smoothness(cycles, 1.3, spread),
                "recorded": smoothness(cycles, 1.0, spread),
            },
        },
        "scores": {
            "cycles": cycles,
            "candidates": CANDIDATES,
            "rank": tally(rank),
            "relative_rank_sum": float(((rank - 1) / CANDIDATES).sum()),
            "margin": tally(margin),
            "spread": tally(rng.exponential(0.2, cycles)),
            "pairs": {"recorded_cost": cost.tolist(), "realised": realised.tolist()},
            "objective": "goal_embedding",
        },
        "gate": {
            "judged": cycles,
            "approved": cycles - rejected,
            "codes": {"VELOCITY_LIMIT": rejected, "WORKSPACE_BOX": max(rejected - 2, 0)},
            "expert": {
                "judged": cycles,
                "rejected": 2,
                "codes": {"JERK_LIMIT": 2},
                "examples": [
                    {
                        "t_s": 12.5,
                        "codes": ["JERK_LIMIT"],
                        "message": "jerk of elbow at step 3 is 61.2 rad/s3; expected at most 60",
                    },
                    {
                        "t_s": 40.0,
                        "codes": ["JERK_LIMIT"],
                        "message": "jerk of elbow at step 9 is 60.4 rad/s3; expected at most 60",
                    },
                ],
            },
            "stops": [
                {"t_s": float(t), "code": "TOO_MANY_REJECTIONS", "message": "3 chunks in a row"}
                for t in stop_times[::3]
            ],
            "stop_count": len(stop_times[::3]),
            "recorded": {"approved": cycles - 1, "rejected": 1, "codes": {"VELOCITY_LIMIT": 1}},
        },
        "latency": {
            "stages": {
                "observation": tally(rng.gamma(4, 4, cycles)),
                "propose": tally(rng.gamma(30, 3, cycles)),
                "score": tally(rng.gamma(30, 5, cycles)),
                "plan": tally(rng.gamma(40, 6.5, cycles)),
                "gate": tally(rng.gamma(4, 0.4, cycles)),
                "capture_to_command": tally(rng.gamma(40, 7.5, cycles)),
            },
            "deadline_misses": 2,
            "plans": cycles,
        },
        "reproduction": {
            "cycles": cycles,
            "same": cycles - 1,
            "differences": [
                {"cycle": 41, "t_s": 21.5, "recorded": 3, "replayed": 17, "cause": "DEADLINE"}
            ],
        },
        "timeline": {
            "t_s": times.tolist(),
            "cost": [None if i % 40 == 7 else float(c) for i, c in enumerate(cost)],
            "margin": margin.tolist(),
            "recorded_rank": rank.tolist(),
            "first_error": first_error.tolist(),
            "age_s": age.tolist(),
            "approved": approved.tolist(),
        },
    }


def health(
    role: str, topic: str, kind: str, duration: float, rate: float, rng: np.random.Generator
) -> dict[str, Any]:
    return {
        "topic": topic,
        "type": kind,
        "role": role,
        "count": int(duration * rate),
        "rate_hz": rate * 0.998,
        "gap_p99_s": 1.2 / rate,
        "gap_max_s": 2.1 / rate,
        "gap_max_at_s": float(duration * rng.random()),
        "out_of_order": 0,
        "skew_ms": {"p50": 4.1, "p95": 9.7, "max": 31.0} if role != "plan_report" else None,
        "definition_sha256": hashlib.sha256(kind.encode()).hexdigest(),
        "definition": "known",
    }


def errors(
    count: int, start: float, growth: float, spread: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """Errors that grow from ``start`` by ``growth`` a step, both times the spread."""
    rms = start + growth * np.arange(HORIZON)[:, None] * (0.8 + 0.4 * rng.random(len(spread)))
    sizes = rms * np.where(spread > 0, spread, 0.0)
    return {
        "count": [count] * HORIZON,
        "sum_abs": (count * 0.8 * sizes).tolist(),
        "sum_sq": (count * sizes**2).tolist(),
    }


def smoothness(count: int, factor: float, spread: np.ndarray) -> dict[str, Any]:
    return {
        "count": count,
        "sum_sq_acceleration": (count * (factor * 8.0 * spread) ** 2).tolist(),
        "sum_sq_jerk": (count * (factor * 90.0 * spread) ** 2).tolist(),
    }


def without_models(name: str, seed: int = 0) -> dict[str, Any]:
    """A bag of sensors alone, replayed without a scorer."""
    document = episode(name, seed)
    document["scores"] = document["latency"] = document["reproduction"] = None
    document["gate"]["recorded"] = None
    document["policy"]["actions_source"] = "joint_states"
    for key in ("cost", "margin", "recorded_rank"):
        document["timeline"][key] = [None] * len(document["timeline"]["t_s"])
    return document


def without_cycles(name: str) -> dict[str, Any]:
    """A bag too short for a single planning cycle."""
    document = episode(name, duration=3.0)
    policy = document["policy"]
    policy["spread"] = [0.0] * len(JOINTS)
    for part in policy["errors"].values():
        part["count"] = [0] * HORIZON
        part["sum_abs"] = part["sum_sq"] = [[0.0] * len(JOINTS)] * HORIZON
    policy["overlap"] = {"count": 0, "sum_sq": [0.0] * len(JOINTS)}
    for part in policy["smoothness"].values():
        part.update(count=0, sum_sq_acceleration=[0.0] * 4, sum_sq_jerk=[0.0] * 4)
    document["cycles"] = {"started": 0, "waiting": 4, "outcomes": {}}
    document["scores"] = document["latency"] = document["reproduction"] = None
    document["gate"].update(judged=0, approved=0, codes={}, stops=[], stop_count=0)
    document["gate"]["expert"] = {"judged": 0, "rejected": 0, "codes": {}, "examples": []}
    document["synchronisation"].update(observations=0, skipped={}, age_s=tally([]))
    document["timeline"] = {key: [] for key in document["timeline"]}
    return document


def several(error: float = 1.0) -> list[dict[str, Any]]:
    """Four whole episodes, one of sensors alone, one that could not be read."""
    whole = [episode(f"episode_{i:03d}", i, error=error * (1 + 0.1 * i)) for i in range(4)]
    return [*whole, without_models("sensors_only", 8), failed_episode("truncated")]


PROVENANCE: dict[str, Any] = {
    "command": "worldforge replay bags/* --embodiment pusht --planner scored",
    "planner": "scored",
    "seed": 0,
    "embodiment": {"name": "so101", "sha256": hashlib.sha256(b"embodiment").hexdigest()},
    "checkpoints": {
        "policy": hashlib.sha256(b"policy").hexdigest(),
        "world_model": hashlib.sha256(b"world model").hexdigest(),
    },
    "versions": {"worldforge_ros": "0.6.0", "numpy": "2.2.6", "torch": "2.11.0"},
}
