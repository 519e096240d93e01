"""LeWM's rollout, the same numbers for less work.

``LeWM.rollout`` runs the whole predictor on the whole window for every block and then keeps the
last token. Here the modulation of an action is computed once, keys and values are kept while the
window still grows (the model is causal), and the last layer sees the last token only.
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

    def __call__(self, context: Tensor, blocks: Tensor) -> Tensor:
        """Predicted embeddings (S, T - n + 1, D), the last one after all blocks.

        :param context: (n, D) embeddings of the frames, one block apart, n at most the window.
        :param blocks: (S, T, A) normalised actions; the first n - 1 lie between the frames.
        """
        return self.batch(context.expand(len(blocks), -1, -1), blocks)

    def batch(self, context: Tensor, blocks: Tensor) -> Tensor:
        """The same from a context (S, n, D) of its own for each."""
        frames = context.shape[1]
        modulations = self._modulations(self._model.action_encoder(blocks))
        states = list(context.unbind(1))
        kept: list[tuple[Tensor, Tensor] | None] = [None] * len(modulations)
        predicted = []
        for known in range(frames, blocks.shape[1] + 1):
            first = max(0, known - self._window)
            # Positions count from the window's start: once it slides, nothing kept is right.
            start = 0 if known == frames or first > 0 else known - 1
            if start == 0:
                kept = [None] * len(modulations)
            tokens = torch.stack(states[first + start : known], dim=1)
            tokens = tokens + self._model.predictor.pos_embedding[:, start : known - first]
            predicted.append(self._predict(tokens, modulations, first + start, kept))
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
        kept: list[tuple[Tensor, Tensor] | None],
    ) -> Tensor:
        """Next embedding (S, D) from the new tokens (S, n, D) that start at block ``first``."""
        transformer = self._model.predictor.transformer
        hidden = transformer.input_proj(tokens)
        last_layer = len(transformer.layers) - 1
        for index, layer in enumerate(transformer.layers):
            part = slice(first, first + hidden.shape[1])
            shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (
                item[:, part] for item in modulations[index]
            )
            attention = layer.attn
            normed = attention.norm(layer.norm1(hidden) * (1 + scale) + shift)
            query, key, value = (
                item.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
                for item in attention.to_qkv(normed).chunk(3, dim=-1)
            )
            before = kept[index]
            if before is not None:
                key = torch.cat([before[0], key], dim=2)
                value = torch.cat([before[1], value], dim=2)
            kept[index] = (key, value)
            if index == last_layer:
                query, hidden = query[:, :, -1:], hidden[:, -1:]
                gate, shift_mlp, scale_mlp, gate_mlp = (
                    item[:, -1:] for item in (gate, shift_mlp, scale_mlp, gate_mlp)
                )
            mixed = functional.scaled_dot_product_attention(
                query, key, value, is_causal=query.shape[2] > 1
            )
            hidden = hidden + gate * attention.to_out(mixed.transpose(1, 2).flatten(2))
            normed = layer.norm2(hidden) * (1 + scale_mlp) + shift_mlp
            hidden = hidden + gate_mlp * layer.mlp(normed)
        output = transformer.output_proj(transformer.norm(hidden[:, -1]))
        projected: Tensor = self._model.pred_proj(output)
        return projected
