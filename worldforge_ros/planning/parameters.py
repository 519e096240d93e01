"""How to plan, as the parameters of planner_node."""

from __future__ import annotations

from worldforge_ros.parameters import ParameterReader
from worldforge_ros.planning.planner import PlannerSettings
from worldforge_ros.planning.seam import MOST_COEFFICIENT, MOST_DURATION, SEAMS, SeamSettings
from worldforge_ros.planning.search import SOURCES, SearchSettings
from worldforge_ros.planning.selection import PLANNERS
from worldforge_ros.planning.sources import check_extra_sources


def declare(parameters: ParameterReader) -> PlannerSettings:
    """Declare all parameters that decide how is planned, and read them.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` naming the parameter.
    """
    seam = SeamSettings()
    std = parameters.numbers(
        "search_std",
        [0.0],
        "standard deviation of a relative action, or of a set-point, per joint in m or rad, "
        "that a search draws with; [0.0]: the embodiment file's",
    )
    return PlannerSettings(
        planner=parameters.text("planner", "scored", "how a candidate is chosen", choices=PLANNERS),
        source=parameters.text(
            "source",
            "policy",
            "where candidates come from: the policy, a cross-entropy search over the world model, "
            "or a search that starts from the policy's",
            choices=SOURCES,
        ),
        replan_period=parameters.number(
            "replan_period", 0.5, "seconds between two cycles", minimum=0.02, maximum=60.0
        ),
        propose_timeout=parameters.number(
            "propose_timeout", 2.0, "seconds to wait for candidates", minimum=0.01, maximum=600.0
        ),
        score_timeout=parameters.number(
            "score_timeout",
            2.0,
            "seconds to wait for costs, of all iterations of a search together",
            minimum=0.01,
            maximum=600.0,
        ),
        search=_search(parameters),
        search_std=tuple(std) if any(std) else (),
        seam=SeamSettings(
            parameters.text(
                "seam", seam.mode, "how a new chunk takes over from the executing one", SEAMS
            ),
            parameters.number(
                "seam_duration",
                seam.duration,
                "seconds that a blend lasts",
                minimum=0.0,
                maximum=MOST_DURATION,
            ),
            parameters.number(
                "ensemble_coefficient",
                seam.coefficient,
                "of a temporal ensemble: prediction i from the oldest weighs exp(-this * i)",
                minimum=-MOST_COEFFICIENT,
                maximum=MOST_COEFFICIENT,
            ),
        ),
        extra_sources=check_extra_sources(
            parameters.texts(
                "extra_sources",
                "candidates beside those of the source: any of hold, tail, supplied",
            )
        ),
        supplied_max_age=parameters.number(
            "supplied_max_age",
            0.5,
            "seconds that a chunk on action_chunk/candidate is offered",
            minimum=0.01,
            maximum=600.0,
        ),
        seed=parameters.integer(
            "seed",
            -1,
            "seed of the first cycle's candidates, then +1; -1: fresh",
            minimum=-1,
            maximum=2**31 - 1,
        ),
        policy_history=parameters.integer(
            "policy_history", 2, "observations that the policy looks at", minimum=1, maximum=64
        ),
        drift_horizon=parameters.integer(
            "drift_horizon",
            0,
            "blocks ahead that the world model is believed: of longer candidates only so many are "
            "scored; 0: not measured",
            minimum=0,
            maximum=4096,
        ),
    )


def _search(parameters: ParameterReader) -> SearchSettings:
    return SearchSettings(
        samples=parameters.integer(
            "search_samples", 128, "samples in an iteration of a search", minimum=2, maximum=65536
        ),
        iterations=parameters.integer(
            "search_iterations", 6, "iterations of a search", minimum=1, maximum=1000
        ),
        elites=parameters.integer(
            "search_elites", 16, "samples that an iteration keeps", minimum=2, maximum=65536
        ),
        blocks=parameters.integer(
            "search_blocks", 5, "action blocks in a candidate of cem", minimum=1, maximum=1000
        ),
        spread=parameters.number(
            "search_spread",
            1.0,
            "what a search starts with: cem times search_std, cem+policy times the standard "
            "deviation of the policy's cheapest candidates",
            minimum=0.001,
            maximum=100.0,
        ),
    )
