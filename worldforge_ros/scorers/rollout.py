"""LeWM's rollout, the same numbers for less work.

``LeWM.rollout`` runs the whole predictor on the whole window for every block and then keeps the
last token. Here the modulation of an action is computed once, keys and values are kept while the
window still grows (the model is causal), the last layer sees the last token only, and the first
token of a window, which can attend to nothing but itself, needs no query.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Rollout:
    """Rolls a ``stable_worldmodel.wm.lewm.LeWM`` out; holds no state between calls."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._window = int(model.predictor.num_frames)

    def candidates_in(self, memory: int, blocks: int) -> int:
        """How many candidates of so many blocks a pass may hold, at least 1, in ``memory`` bytes.

        Counts what lives at the same time: modulations of every block, keys and values of the
        window, and the widest layer.
        """
        predictor = self._model.predictor
        layers = predictor.transformer.layers
        qkv = layers[0].attn.to_qkv.weight.shape[0]
        width = layers[0].adaLN_modulation[-1].weight.shape[1]
        widest = max(qkv, layers[0].mlp.net[1].weight.shape[0])
        floats = 6 * width * blocks * len(layers) + self._window * (
            qkv * len(layers) + 3 * widest + 8 * width
        )
        return max(1, memory // (4 * int(floats)))

    def __call__(self, context: Tensor, blocks: Tensor) -> Tensor:
        """Predicted embeddings (S, T - n + 1, D), the last one after all blocks.

        :param context: (n, D) embeddings of the frames, one block apart, n at most the window.
        :param blocks: (S, T, A) normalised actions; the first n - 1 lie between the frames.
        """
        return self.batch(context.expand(blocks.shape[0], -1, -1), blocks)

    def batch(self, context: Tensor, blocks: Tensor) -> Tensor:
        """The same from a context (S, n, D) of its own for each."""
        # Whole numbers and not what tracing makes of sizes: the loop depends on them.
        frames, horizon = int(context.shape[1]), int(blocks.shape[1])
        modulations = self._modulations(self._model.action_encoder(blocks))
        states = list(context.unbind(1))
        kept: list[tuple[Tensor, Tensor] | None] = [None] * len(modulations)
        predicted = []
        for known in range(frames, horizon + 1):
            first = max(0, known - self._window)
            # Positions count from the window's start: once it slides, nothing kept is right.
            start = 0 if known == frames or first > 0 else known - 1
            if start == 0:
                kept = [None] * len(modulations)
            tokens = torch.stack(states[first + start : known], dim=1)
            tokens = tokens + self._model.predictor.pos_embedding[:, start : known - first]
            predicted.append(self._predict(tokens, modulations, first + start, known, kept))
            states.append(predicted[-1])
        return torch.stack(predicted, dim=1)

    def _modulations(self, actions: Tensor) -> list[tuple[Tensor, ...]]:
        transformer = self._model.predictor.transformer
        condition = transformer.cond_proj(actions)
        return [layer.adaLN_modulation(condition).chunk(6, dim=-1) for layer in transformer.layers]

    def _predict(
        self,
        tokens: Tensor,
        modulations: list[tuple[Tensor, ...]],
        first: int,
        end: int,
        kept: list[tuple[Tensor, Tensor] | None],
    ) -> Tensor:
        """Next embedding (S, D) from the new tokens (S, end - first, D), those of the blocks from
        ``first`` to before ``end``.
        """
        transformer = self._model.predictor.transformer
        hidden = transformer.input_proj(tokens)
        last_layer = len(transformer.layers) - 1
        for index, layer in enumerate(transformer.layers):
            shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (
                item[:, first:end] for item in modulations[index]
            )
            normed = layer.attn.norm(layer.norm1(hidden) * (1 + scale) + shift)
            count = end - first
            if index == last_layer:
                hidden = hidden[:, -1:]
                gate, shift_mlp, scale_mlp, gate_mlp = (
                    item[:, -1:] for item in (gate, shift_mlp, scale_mlp, gate_mlp)
                )
            mixed, kept[index] = _attend(
                layer.attn, normed, count, 1 if index == last_layer else count, kept[index]
            )
            hidden = hidden + gate * layer.attn.to_out(mixed)
            normed = layer.norm2(hidden) * (1 + scale_mlp) + shift_mlp
            hidden = hidden + gate_mlp * layer.mlp(normed)
        output = transformer.output_proj(transformer.norm(hidden[:, -1]))
        projected: Tensor = self._model.pred_proj(output)
        return projected


def _attend(
    attention: Any,
    normed: Tensor,
    count: int,
    wanted: int,
    before: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Causal attention of the last ``wanted`` of ``count`` new tokens (S, count, D).

    :param before: keys and values (S, tokens, heads, width) of the tokens before them.
    :returns: (S, wanted, heads * width), and the keys and values of all.
    """
    heads = attention.heads
    query_weight, key_value_weight = attention.to_qkv.weight.tensor_split(
        [attention.to_qkv.weight.shape[0] // 3]
    )
    keys, values = (
        _by_head(item, heads)
        for item in functional.linear(normed, key_value_weight).chunk(2, dim=-1)
    )
    past = 0
    if before is not None:
        past = int(before[0].shape[1])
        keys, values = torch.cat([before[0], keys], dim=1), torch.cat([before[1], values], dim=1)
    alone = past == 0 and wanted == count
    # Contiguous: of a view, linear makes one small product for each candidate.
    asking = normed[:, count - wanted + (1 if alone else 0) :].contiguous()
    mixed = [values[:, 0]] if alone else []
    if asking.shape[1]:
        queries = _by_head(functional.linear(asking, query_weight), heads)
        queries = queries * queries.shape[-1] ** -0.5
        total = past + count
        for index in range(total - int(asking.shape[1]), total):
            query = queries[:, index - total, None]
            weights = (query * keys[:, : index + 1]).sum(-1, keepdim=True).softmax(dim=1)
            mixed.append((weights * values[:, : index + 1]).sum(1))
    return torch.stack(mixed, dim=1).flatten(2), (keys, values)


def _by_head(values: Tensor, heads: int) -> Tensor:
    return values.view(*values.shape[:-1], heads, values.shape[-1] // heads)
