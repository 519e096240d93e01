"""Surprise: what was executed, what was predicted, what is normal, and what is not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldforge_ros.embodiment import load_embodiment
from worldforge_ros.errors import ErrorCode, WorldForgeError
from worldforge_ros.evaluation.surprise_command import summary
from worldforge_ros.observation import Observation
from worldforge_ros.planning.chunk import ActionChunk
from worldforge_ros.resources import resolve_path
from worldforge_ros.safety.gate import SETTLE_TIME, GateMode
from worldforge_ros.scorers.cards import read_card
from worldforge_ros.scorers.latent import FrameClip
from worldforge_ros.scorers.surprise import (
    CARD_FILE,
    CARD_SCHEMA,
    THRESHOLD,
    SetpointTimeline,
    SurpriseCard,
    SurpriseMonitor,
    blocks_of,
    prediction_error,
)

NS = 1_000_000_000
START = 100 * NS
STEP = NS // 10
ROBOT = load_embodiment("pusht")
MODEL = resolve_path("package://worldforge_ros/models/pusht/world_model")


def chunk(actions: Any, stamp: int = START, sequence: int = 1) -> ActionChunk:
    return ActionChunk(
        stamp=stamp,
        embodiment="pusht",
        joint_names=ROBOT.joint_names,
        step=0.1,
        actions=np.asarray(actions, np.float64),
        source="policy",
        epoch=1,
        sequence=sequence,
        observation_stamp=stamp,
    )


def seen(stamp: int, place: tuple[float, float] = (0.1, 0.2)) -> Observation:
    blank = np.zeros((96, 96, 3), np.uint8)
    return Observation(stamp, {"top": blank}, np.array(place), np.zeros(2))


def test_set_points_are_those_in_force_at_their_time() -> None:
    here = np.array([0.5, 0.5])
    line = SetpointTimeline(ROBOT, 10.0)
    assert line.at(START, here) is None
    line.add_chunk(chunk([[0.0, 0.0], [0.1, 0.1], [0.2, 0.2]]), START)
    assert line.at(START - 1, here) is None
    assert line.at(START, here).tolist() == [0.0, 0.0]  # type: ignore[union-attr]
    assert line.at(START + STEP, here).tolist() == [0.1, 0.1]  # type: ignore[union-attr]
    # The next one begins when it has arrived, in the middle of itself, and not before.
    late = START + STEP + STEP // 2
    line.add_chunk(chunk([[0.6, 0.6], [0.7, 0.7], [0.8, 0.8]], START, 2), late)
    assert line.at(late - 1, here).tolist() == [0.1, 0.1]  # type: ignore[union-attr]
    assert line.at(late, here).tolist() == [0.7, 0.7]  # type: ignore[union-attr]
    assert line.at(START + 3 * STEP, here) is None
    # While the gate holds the robot is where it is, once it has come to rest.
    line.add_mode(GateMode.HOLDING, START + 3 * STEP)
    settled = START + 3 * STEP + round(SETTLE_TIME * NS)
    assert line.at(settled - 1, here) is None
    assert line.at(settled, here).tolist() == [0.5, 0.5]  # type: ignore[union-attr]
    line.add_mode(GateMode.DISARMED, settled + NS)
    assert line.at(settled + NS, here) is None
    for wrong, code in (
        (replace(chunk([[0.0, 0.0]]), joint_names=("a", "b")), ErrorCode.JOINT_NAMES_MISMATCH),
        (chunk([[0.0]]), ErrorCode.TENSOR_SHAPE_MISMATCH),
    ):
        with pytest.raises(WorldForgeError) as caught:
            line.add_chunk(wrong, settled + 2 * NS)
        assert caught.value.code is code


def test_a_timeline_is_bounded() -> None:
    line = SetpointTimeline(ROBOT, 2.0)
    for index in range(3000):
        line.add_chunk(chunk([[0.1, 0.1]], START + index * STEP, index), START + index * STEP)
    assert len(line._segments) <= 22


def test_a_block_is_known_when_its_frames_and_its_set_points_are() -> None:
    monitor = SurpriseMonitor(ROBOT, 1)
    actions = np.stack([np.linspace(0.0, 0.19, 20), np.zeros(20)], axis=1)
    monitor.approved(chunk(actions), START - NS)
    found = [monitor.observed(seen(START + k * STEP)) for k in range(8)]
    assert found[:5] == [None] * 5
    for number, block in enumerate(found[5:]):
        assert block is not None
        stamps = [item.stamp for item in block.window]
        assert stamps == [START + number * STEP, START + (number + 5) * STEP]
        np.testing.assert_allclose(block.setpoints, actions[number : number + 5])
    # A frame that is missing, and time that goes back.
    assert monitor.observed(seen(START + 14 * STEP)) is None
    assert monitor.observed(seen(START)) is None
    assert [monitor.observed(seen(START + k * STEP)) for k in range(1, 7)] == [None] * 6


@pytest.fixture(scope="module")
def scorer() -> Any:
    pytest.importorskip("torch", reason="the package torch is not installed")
    from worldforge_ros.scorers.lewm import load_lewm

    return load_lewm(MODEL, ROBOT)


def clip_of(episode: Any, name: str) -> FrameClip:
    count = (len(episode) - 1) // 5
    return FrameClip(
        episode=name,
        images=episode.images[: 5 * count + 1 : 5],
        position=episode.position[: 5 * count + 1].astype(np.float64),
        velocity=episode.velocity[: 5 * count + 1].astype(np.float64),
        actions=episode.action[: 5 * count].astype(np.float64),
        states=np.empty((count + 1, 0)),
    )


def surprises(scorer: Any, card: SurpriseCard, clip: FrameClip) -> list[float]:
    return [
        card.standardised(prediction_error(scorer, ROBOT, block.window, block.setpoints))
        for block in blocks_of(clip, ROBOT, scorer.history)
    ]


def test_the_error_is_the_distance_of_prediction_and_picture(scorer: Any) -> None:
    import torch

    from worldforge_ros.scorers.lewm_latents import LeWMLatents

    pytest.importorskip("gym_pusht", reason="gym_pusht is not installed")
    from worldforge_ros.training.demos import play

    clip = clip_of(play(60, steps=16), "play")
    model = LeWMLatents(scorer)
    latents = torch.from_numpy(model.latents(clip))
    first = next(blocks_of(clip, ROBOT, 1))
    # The blocks of a candidate are expected positions, those of a recording measured ones: PushT
    # tracks so well that they are the same to a few mm.
    ahead = model.ahead(latents[:1].numpy(), model.actions(clip)[None, :1])[0, 0]
    expected = float(np.square(ahead - latents[1].numpy()).sum())
    found = prediction_error(scorer, ROBOT, first.window, first.setpoints)
    assert found == pytest.approx(expected, rel=0.2)


@pytest.fixture(scope="module")
def card(scorer: Any) -> SurpriseCard:
    return SurpriseCard.read(MODEL / CARD_FILE, scorer, ROBOT)


@pytest.fixture(scope="module")
def normal() -> FrameClip:
    """The begin of a demonstration that no calibration has seen."""
    pytest.importorskip("gym_pusht", reason="gym_pusht is not installed")
    from worldforge_ros.training.demos import demonstrate

    return clip_of(demonstrate(71, max_steps=20), "demo")


def test_a_teleported_block_is_flagged_within_a_block(
    scorer: Any, card: SurpriseCard, normal: FrameClip
) -> None:
    """From picture 3 on the pictures are of a world whose block is somewhere else."""
    from worldforge_ros.simulation.pusht import PushTSimulation

    before = surprises(scorer, card, normal)
    world = PushTSimulation()
    pusher = normal.position[15] * 1000.0
    images = normal.images.copy()
    # Away from where it is, whatever that is: the farther of two corners of the table.
    places = [(130.0, 130.0), (380.0, 380.0)]
    pictures = []
    for place in places:
        world.set_state(np.array([*pusher, *place, 0.5]))
        pictures.append(world.image())
    gaps = [np.abs(p.astype(int) - images[3].astype(int)).sum() for p in pictures]
    images[3] = pictures[int(np.argmax(gaps))]
    after = surprises(scorer, card, replace(normal, images=images))
    # Block 2 ends with that picture.
    assert after[2] > THRESHOLD > before[2]
    assert after[:2] == pytest.approx(before[:2])


def test_a_swapped_picture_is_flagged_within_a_block(
    scorer: Any, card: SurpriseCard, normal: FrameClip
) -> None:
    from worldforge_ros.training.demos import play

    before = surprises(scorer, card, normal)
    images = normal.images.copy()
    images[2] = play(93, steps=2).images[0]
    after = surprises(scorer, card, replace(normal, images=images))
    assert after[1] > THRESHOLD > before[1]
    assert after[:1] == pytest.approx(before[:1])


def test_a_card_says_what_is_normal(scorer: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episodes = [np.exp(rng.normal(2.0, 0.5, 50)).tolist() for _ in range(20)]
    card = SurpriseCard.of(scorer, ROBOT, episodes, {"made": "up"})
    assert card.log_mean == pytest.approx(2.0, abs=0.05)
    assert card.log_std == pytest.approx(0.5, abs=0.05)
    assert card.standardised(math.exp(card.log_mean + 3 * card.log_std)) == pytest.approx(3.0)
    assert card.standardised(0.0) < -10.0
    path = tmp_path / CARD_FILE
    card.write(path)
    assert SurpriseCard.read(path, scorer, ROBOT) == card
    figures = summary(card, {"a": [math.exp(2.0)] * 9 + [math.exp(9.0)], "b": [1.0] * 10}, 4.0)
    assert (figures["flagged_blocks"], figures["flagged_episodes"]) == (1, 1)
    assert figures["flagged_share"]["mean"] == pytest.approx(0.05)
    with pytest.raises(WorldForgeError) as caught:
        SurpriseCard.of(scorer, ROBOT, [[1.0] * 200], {})
    assert caught.value.code is ErrorCode.DATASET_INVALID


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"schema": "x"}, ErrorCode.CHECKPOINT_INVALID),
        ({"sha256": "0" * 64}, ErrorCode.CHECKPOINT_UNTRUSTED),
        ({"embodiment": "aloha"}, ErrorCode.EMBODIMENT_MISMATCH),
        ({"block_seconds": 0.2}, ErrorCode.EMBODIMENT_MISMATCH),
        ({"log_std": 0.0}, ErrorCode.CHECKPOINT_INVALID),
        ({"log_mean": "2"}, ErrorCode.CHECKPOINT_INVALID),
        ({"more": 1}, ErrorCode.CHECKPOINT_INVALID),
    ],
)
def test_a_card_of_something_else_is_refused(
    scorer: Any, card: SurpriseCard, tmp_path: Path, change: dict[str, Any], code: ErrorCode
) -> None:
    path = tmp_path / CARD_FILE
    card.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(WorldForgeError) as caught:
        SurpriseCard.read(path, scorer, ROBOT)
    assert caught.value.code is code
    with pytest.raises(WorldForgeError) as missing:
        read_card(tmp_path / "absent.json", CARD_SCHEMA, "", ROBOT)
    assert missing.value.code is ErrorCode.CHECKPOINT_MISSING


def test_the_shipped_card_is_of_the_shipped_model(card: SurpriseCard) -> None:
    assert card.blocks >= 1000
    assert card.source["simulated"] == "pusht"


def test_score_node_says_on_its_topic_what_surprised_it(ros: Any, normal: FrameClip) -> None:
    """A demonstration over DDS whose picture 3 was swapped: its block is flagged, the ones before
    it are not.
    """
    from worldforge_ros.msg import ActionChunk as ChunkMsg
    from worldforge_ros.msg import GateStatus, Heartbeat, Surprise
    from worldforge_ros.msg import Observation as ObservationMsg
    from worldforge_ros.ros import convert, qos
    from worldforge_ros.training.demos import play

    images = normal.images.copy()
    images[3] = play(93, steps=2).images[0]
    with ros.process("score_node", model_path=str(MODEL), warmup_candidates=1):
        found = ros.record(Surprise, "score_node/surprise", qos.REPORT)
        # It beats while it is active.
        lively = ros.record(Heartbeat, "heartbeat", qos.HEARTBEAT)
        chunks = ros.node.create_publisher(ChunkMsg, "action_chunk/approved", qos.CHUNK)
        states = ros.node.create_publisher(GateStatus, "safety_gate/status", qos.LATCHED)
        pictures = ros.node.create_publisher(ObservationMsg, "observation", qos.CHUNK)
        for publisher in (chunks, states, pictures):
            ros.connected(publisher, 60.0)
        states.publish(GateStatus(mode=GateStatus.ARMED))
        # Well ahead of now, so that nothing depends on how fast the test is.
        begin = ros.node.get_clock().now().nanoseconds + 600 * NS
        rest = normal.position[0]
        frames = 0

        def show(plan: ActionChunk, stamp: int, index: int) -> None:
            item = Observation(
                stamp, {"top": images[index]}, normal.position[5 * index], np.zeros(2)
            )
            chunks.publish(convert.chunk_to_msg(plan, "base"))
            pictures.publish(convert.observation_to_msg(item, ROBOT, "base"))

        def heard() -> bool:
            """Rest until the node measures; whatever it misses comes again."""
            nonlocal frames
            stamp = begin + frames * STEP
            show(chunk(np.tile(rest, (40, 1)), stamp - 2 * NS), stamp, 0)
            frames += 1
            return bool(found)

        ros.wait_until(lambda: lively, 90.0, "an active node")
        ros.wait_until(heard, 20.0, "a first surprise")
        begin += frames * STEP
        plan = chunk(normal.actions, begin, 2)
        for index in range(4):
            stamp = begin + index * 5 * STEP

            def said(stamp: int = stamp, index: int = index) -> bool:
                show(plan, stamp, index)
                return any(convert.stamp_to_ns(m.header.stamp) == stamp for m in found)

            ros.wait_until(said, 20.0, f"surprise of picture {index}")
    by_stamp = {convert.stamp_to_ns(message.header.stamp): message for message in found}
    values = [by_stamp[begin + index * 5 * STEP].standardised for index in (1, 2, 3)]
    assert max(values[:2]) < THRESHOLD < values[2]
    last = by_stamp[begin + 15 * STEP]
    assert last.error > 0.0
    assert convert.duration_to_seconds(last.block) == 0.5
    assert last.model_id.startswith("world_model-")
