"""Latency of every stage of the PushT loop, from one live episode: p50, p95, max, shares of ROS and
of the models. Same as ``worldforge bench pusht``.

    python benchmarks/latency.py --duration 20 --json latency.json

Writes ``rows[]``: stage, p50, p95, max (ms) and, where a model takes part, model_ms, ros_ms and
model_share of the median; also deadline_misses, realtime_factor, counts, versions, distro.
"""

import sys

from worldforge_ros.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["bench", "pusht", *sys.argv[1:]]))
