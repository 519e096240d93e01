"""Three ways to get costs out of a LeWorldModel; all give the same numbers.

``torch`` encodes a picture once and rolls out with
:class:`~worldforge_ros.scorers.rollout.Rollout`; ``openvino`` does the same with the rollout
compiled for the CPU; ``upstream`` asks the model's own cost function, for models that only it can
run.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldforge_ros.errors import ErrorCode, mismatch
from worldforge_ros.observation import ImageArray
from worldforge_ros.scorers.contract import flat_costs
from worldforge_ros.scorers.encoders import ImageSize, normalise_pixels, resize_pixels
from worldforge_ros.scorers.objectives import Cost
from worldforge_ros.scorers.rollout import Rollout

FloatArray = npt.NDArray[np.float64]

BACKENDS = ("torch", "openvino", "upstream")
PRECISIONS = ("float32", "bfloat16")
EMBEDDINGS_KEPT = 512
"""Pictures whose embeddings are kept: half a minute of a camera at 10 Hz and goals beside it."""
GRAPHS_KEPT = 4
"""Compiled rollouts, one for each number of frames and blocks that was asked for."""


@dataclass(frozen=True)
class Pixels:
    """What the weights expect of pictures: size in pixels, mean and deviation a channel."""

    size: ImageSize
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tensor(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """(N, 3, height, width) float32 of camera pictures (N, height, width, 3) uint8 RGB."""
        small = torch.from_numpy(resize_pixels(images, self.size))
        return normalise_pixels(small, self.mean, self.std)


class Engine(Protocol):
    """Costs of candidates from pictures and blocks that were checked before."""

    @property
    def runtime(self) -> str:
        """The programming interface that is used, for the metadata."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Objectives that :meth:`costs` takes."""

    def remember(self, image: ImageArray) -> None:
        """Encode a picture and keep the result, where the engine can."""

    def costs(
        self,
        frames: Sequence[ImageArray],
        goal: ImageArray,
        past: FloatArray,
        blocks: FloatArray,
        objective: str,
    ) -> tuple[object, Mapping[str, str]]:
        """Costs of (S, T, A) blocks as the runtime gives them, and what was cached.

        ``past`` (n - 1, A) lie between the n ``frames``; ``blocks`` are all in the future.
        """


class Ends(Protocol):
    """Rolls candidates out to their last embedding."""

    def __call__(self, context: Tensor, blocks: Tensor) -> Tensor:
        """(S, D) after all blocks (S, n - 1 + T, A), from embeddings (n, D) of the frames."""


class LatentEngine:
    """Keeps embeddings by picture content and rolls out from them.

    :param chunk: candidates rolled out in one pass, which bounds the memory of a request.
    """

    def __init__(
        self,
        model: Any,
        ends: Ends,
        costs: Mapping[str, Cost],
        pixels: Pixels,
        device: torch.device,
        chunk: Callable[[int], int],
        runtime: str,
    ) -> None:
        self._model = model
        self._ends = ends
        self._costs = costs
        self._pixels = pixels
        self._device = device
        self._chunk = chunk
        self._runtime = runtime
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    @property
    def runtime(self) -> str:
        """The programming interface that is used."""
        return self._runtime

    @property
    def objectives(self) -> tuple[str, ...]:
        """Objectives of the checkpoint."""
        return tuple(self._costs)

    def embed(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Embeddings (N, D) of camera pictures (N, height, width, 3) uint8."""
        pixels = self._pixels.tensor(images).to(self._device)
        embedding: Tensor = self._model.encode({"pixels": pixels[None]})["emb"][0]
        return embedding

    def remember(self, image: ImageArray) -> None:
        """Encode a picture and keep the result."""
        with torch.inference_mode():
            self._embedding(image)

    def seen_cost(self, image: ImageArray, goal: ImageArray, objective: str) -> float:
        """What a candidate would cost that is predicted to end in ``image``."""
        with torch.inference_mode():
            end, target = (self._embedding(picture)[0] for picture in (image, goal))
            return float(self._costs[objective](end[None].float(), target)[0])

    def _embedding(self, image: ImageArray) -> tuple[Tensor, bool]:
        """Embedding (D,) of one picture, and whether it was kept from before."""
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        known = self._kept.get(digest)
        if known is None:
            found = self.embed(image[np.newaxis])[0]
            self._kept[digest] = found
            if len(self._kept) > EMBEDDINGS_KEPT:
                self._kept.popitem(last=False)
            return found, False
        self._kept.move_to_end(digest)
        return known, True

    def costs(
        self,
        frames: Sequence[ImageArray],
        goal: ImageArray,
        past: FloatArray,
        blocks: FloatArray,
        objective: str,
    ) -> tuple[object, Mapping[str, str]]:
        """Costs (S,) of the blocks, chunk by chunk, and which embeddings were kept from before."""
        with torch.inference_mode():
            found = [self._embedding(frame) for frame in frames]
            target, goal_kept = self._embedding(goal)
            context = torch.stack([embedding for embedding, _ in found])
            cost = self._costs[objective]
            parts = []
            for actions in _chunks(past, blocks, self._chunk(len(past) + blocks.shape[1])):
                ends = self._ends(context, actions.to(self._device))
                parts.append(cost(ends.float(), target))
            values = torch.cat(parts).float().cpu().numpy()
        kept = sum(hit for _, hit in found)
        return values, {
            "history_cached": f"{kept} of {len(found)}",
            "goal_cached": "true" if goal_kept else "false",
        }


class TorchEnds:
    """:class:`Rollout` as it is, in float32 or under bfloat16 autocast."""

    def __init__(self, model: Any, precision: str, device: torch.device) -> None:
        self._rollout = Rollout(model)
        self._lower = precision == "bfloat16"
        self._device = device.type

    def __call__(self, context: Tensor, blocks: Tensor) -> Tensor:
        """(S, D) after all blocks."""
        lower: AbstractContextManager[Any] = nullcontext()
        if self._lower:
            lower = torch.autocast(self._device, dtype=torch.bfloat16)
        with lower:
            return self._rollout(context, blocks)[:, -1]


class OpenVinoEnds:
    """The same rollout, traced and compiled by OpenVINO for each number of frames and blocks.

    A number that was not asked for before costs some seconds once; the warm-up pays for its own.

    :raises WorldForgeError: ``DEPENDENCY_MISSING`` without OpenVINO.
    """

    def __init__(self, model: Any, precision: str, threads: int) -> None:
        try:
            import openvino
            from openvino.frontend import FrontEndManager
            from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
        except ImportError as error:
            raise mismatch(
                ErrorCode.DEPENDENCY_MISSING,
                f"python module {error.name or 'openvino'}",
                found=f"absent ({error})",
                expected="the package openvino for backend openvino",
            ) from error
        self._core = openvino.Core()
        self._shape = openvino.PartialShape
        # Not openvino.convert_model: that reports its use to the vendor unless told otherwise.
        self._frontend = FrontEndManager().load_by_framework("pytorch")
        self._decoder = TorchScriptPythonDecoder
        self._module = _LastEmbedding(model).eval()
        self._options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, context: Tensor, blocks: Tensor) -> Tensor:
        """(S, D) after all blocks."""
        key = (*context.shape, *blocks.shape[1:])
        if key not in self._compiled:
            self._compiled[key] = self._compile(context, blocks)
            if len(self._compiled) > GRAPHS_KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        result = self._compiled[key].infer([context.numpy(), blocks.numpy()])
        return torch.from_numpy(np.array(result[0]))

    def _compile(self, context: Tensor, blocks: Tensor) -> Any:
        # Tensors that inference mode made cannot be traced, and one sample would be traced as a
        # constant.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = torch.zeros(context.shape), torch.zeros((3, *blocks.shape[1:]))
            trace: Any = torch.jit.trace
            traced = trace(self._module, example, check_trace=False)
            # A name of its own: the front end does not keep the decoder alive while it converts.
            decoder = self._decoder(traced)
            graph = self._frontend.convert(self._frontend.load(decoder))
        first, second = graph.inputs
        graph.reshape(
            {
                first: self._shape(list(context.shape)),
                second: self._shape([-1, *blocks.shape[1:]]),
            }
        )
        return self._core.compile_model(graph, "CPU", self._options).create_infer_request()


class _LastEmbedding(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.rollout = Rollout(model)

    def forward(self, context: Tensor, blocks: Tensor) -> Tensor:
        return self.rollout(context, blocks)[:, -1]


class UpstreamEngine:
    """The model's own cost, recomputed from the pictures with every call.

    ``get_cost`` of stable-worldmodel up to 0.1.1 takes the blocks between the frames as the first
    candidate blocks; the later ``ShootingCostEvaluator`` takes them as ``action_history`` and
    candidates that are all in the future. Which one is there decides.

    :raises WorldForgeError: ``DEPENDENCY_MISSING`` when neither is.
    """

    def __init__(
        self, model: Any, pixels: Pixels, device: torch.device, chunk: Callable[[int], int]
    ) -> None:
        self._pixels = pixels
        self._device = device
        self._chunk = chunk
        if callable(getattr(model, "get_cost", None)):
            self._model, self._future, self._runtime = model, False, "get_cost"
            return
        try:
            from stable_worldmodel.planning import GoalMSE, ShootingCostEvaluator
        except ImportError as error:
            raise mismatch(
                ErrorCode.DEPENDENCY_MISSING,
                f"cost function of {type(model).__name__}",
                found="neither get_cost nor stable_worldmodel.planning.ShootingCostEvaluator",
                expected="one of them",
            ) from error
        self._model = ShootingCostEvaluator(model, GoalMSE()).eval()
        self._future, self._runtime = True, "ShootingCostEvaluator"

    @property
    def runtime(self) -> str:
        """The programming interface that is used."""
        return self._runtime

    @property
    def objectives(self) -> tuple[str, ...]:
        """What upstream computes: the summed squared difference of LeWorldModel."""
        return ("l2",)

    def remember(self, image: ImageArray) -> None:
        """Nothing: upstream encodes what it is given."""

    def costs(
        self,
        frames: Sequence[ImageArray],
        goal: ImageArray,
        past: FloatArray,
        blocks: FloatArray,
        objective: str,
    ) -> tuple[object, Mapping[str, str]]:
        """Costs of the blocks from pictures encoded anew."""
        context = self._pixels.tensor(np.stack(frames)).to(self._device)
        target = self._pixels.tensor(goal[np.newaxis]).to(self._device)
        parts = []
        with torch.no_grad():
            for actions in _chunks(past, blocks, self._chunk(len(past) + blocks.shape[1])):
                batch = actions.to(self._device)[None]
                samples = batch.shape[1]
                # A fresh mapping each time: upstream writes embeddings into it and would take
                # those of the last call for these pictures.
                info = {
                    "pixels": context.expand(1, samples, *context.shape),
                    "goal": target.expand(1, samples, *target.shape),
                    "action": batch[:, :, : len(frames)],
                }
                if self._future:
                    info["action_history"] = batch[:, :, : len(past)]
                    batch = batch[:, :, len(past) :]
                found = as_numpy(self._model.get_cost(info, batch))
                parts.append(flat_costs(found, samples, self._runtime))
        cached = {"history_cached": f"0 of {len(frames)}", "goal_cached": "false"}
        return np.concatenate(parts), cached


def as_numpy(value: Any) -> object:
    """A tensor as a float32 array on the CPU; anything else as it is."""
    return value.detach().float().cpu().numpy() if torch.is_tensor(value) else value


def _chunks(past: FloatArray, blocks: FloatArray, size: int) -> Sequence[Tensor]:
    """Executed and future blocks joined, (at most ``size``, n - 1 + T, A) float32 each."""
    parts = np.split(blocks, range(size, len(blocks), size))
    return [
        torch.from_numpy(
            np.concatenate([np.broadcast_to(past, (len(part), *past.shape)), part], axis=1)
        ).float()
        for part in parts
    ]
