"""The weights by TransformerLens's names, stacked over layers, for reading.

They are copies (``hm.W_Q[5] *= 0`` changes nothing). An edit, or ``hm.fork``, changes weights.
"""

from __future__ import annotations

from typing import Any


def _view(name: str, meaning: str) -> property:
    def read(self: Views) -> Any:
        return getattr(self.bridge, name)

    return property(read, doc=f"{meaning}; a copy, for reading.")


class Views:
    """TransformerLens's names for weights, as read-only properties."""

    @property
    def bridge(self) -> Any:
        """The bridge, from which weights are read."""
        raise NotImplementedError

    W_E = _view("W_E", "embedding [d_vocab d_model]")
    W_pos = _view("W_pos", "learned positions [n_ctx d_model], where the family has them")
    W_U = _view("W_U", "unembedding [d_model d_vocab]")
    b_U = _view("b_U", "unembedding bias [d_vocab]")
    W_Q = _view("W_Q", "queries [layer head d_model d_head]")
    W_K = _view("W_K", "keys [layer kv d_model d_head], one per head or per group")
    W_V = _view("W_V", "values [layer kv d_model d_head], one per head or per group")
    W_O = _view("W_O", "attention output [layer head d_head d_model]")
    b_Q = _view("b_Q", "query biases [layer head d_head]")
    b_K = _view("b_K", "key biases [layer kv d_head]")
    b_V = _view("b_V", "value biases [layer kv d_head]")
    b_O = _view("b_O", "attention output biases [layer d_model]")
    W_in = _view("W_in", "into the MLP [layer d_model d_mlp]")
    W_gate = _view("W_gate", "gates of a gated MLP [layer d_model d_mlp], else None")
    W_out = _view("W_out", "out of the MLP [layer d_mlp d_model]")
    b_in = _view("b_in", "biases into the MLP [layer d_mlp]")
    b_out = _view("b_out", "biases out of the MLP [layer d_model]")
