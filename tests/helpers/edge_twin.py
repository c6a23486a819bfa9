"""Edge attribution by its definition: masks on edges, one prompt at a time, hooks written by hand.

Every edge has a mask. At a mask of 1 its receiver alone reads, from its sender alone, what the sender would
have written in the other prompt. The score of an edge is the metric's derivative in its mask at 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.metrics import answer_logprob
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel


class Double(TorchFunctionMode):
    """Compute in float64 what models compute in float32 whatever their precision (norms, softmax)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})


class Twin:
    """One fact's clean and corrupt prompt, and a mask for every edge."""

    def __init__(self, hm: HookedModel, fact: Fact, swapped: Fact) -> None:
        self.hm, self.bridge = hm, hm.bridge
        self.layers, self.heads = hm.arch.shape.n_layers, hm.arch.shape.n_heads
        self.parallel = hm.hf.config.model_type == "gpt_neox"
        self.rows = {word: encode(hm, [fact], answer=[word]) for word in (fact.answer, str(fact.foil))}
        self.others = {word: encode(hm, [swapped], answer=[word]) for word in self.rows}
        self.senders = ["embed"]
        for layer in range(self.layers):
            self.senders += [f"L{layer}.head[{head}]" for head in range(self.heads)] + [f"L{layer}.mlp"]

    def block(self, layer: int) -> Any:
        """The plain model's block."""
        hf: Any = self.hm.hf
        if hasattr(hf, "transformer"):
            return hf.transformer.h[layer]
        return (hf.gpt_neox if self.parallel else hf.model).layers[layer]

    def project(self, layer: int, part: str, stream: Tensor) -> Any:
        """Queries, keys or values [batch pos unit d_head] of a stream, by the plain model's own modules."""
        block, width = self.block(layer), self.hm.arch.d_head
        if hasattr(block, "attn"):
            joined = block.attn.c_attn(block.ln_1(stream)).unflatten(-1, (3, -1, width))
            return joined[:, :, "qkv".index(part)]
        if self.parallel:
            mixed = block.attention.query_key_value(block.input_layernorm(stream))
            return mixed.unflatten(-1, (-1, 3, width))[:, :, :, "qkv".index(part)]
        project = getattr(block.self_attn, f"{part}_proj")
        return project(block.input_layernorm(stream)).unflatten(-1, (-1, width))

    def written(self, layer: int, z: Tensor) -> Any:
        """What an attention writes, given all heads' z: output matrix and, where there is one, post-norm."""
        block = self.block(layer)
        if hasattr(block, "attn"):
            return block.attn.c_proj(z.flatten(2))
        if self.parallel:
            return block.attention.dense(z.flatten(2))
        out = block.self_attn.o_proj(z.flatten(2))
        post = hasattr(block, "pre_feedforward_layernorm")
        return block.post_attention_layernorm(out) if post else out

    def cached(self, row: Batch) -> Any:
        """All activations of a run."""
        with torch.no_grad():
            return self.bridge.run_with_cache(row.tokens)[1]

    @property
    def receivers(self) -> list[str]:
        """All that read, in the order in which they compute."""
        names, shape = [], self.hm.arch.shape
        kind, count = ("kv", shape.n_kv_heads) if shape.grouped else ("head", self.heads)
        for layer in range(self.layers):
            names += [f"L{layer}.head[{head}].q" for head in range(self.heads)]
            names += [f"L{layer}.{kind}[{unit}].{part}" for part in "kv" for unit in range(count)]
            names.append(f"L{layer}.mlp")
        return [*names, f"L{self.layers - 1}.resid_post"]

    def exists(self) -> Tensor:
        """Where an edge can be [sender receiver]."""
        return torch.tensor(
            [[s < self.count(name) for name in self.receivers] for s in range(len(self.senders))]
        )

    def count(self, receiver: str) -> int:
        """How many senders have written when a receiver reads."""
        if receiver.endswith("resid_post"):
            return len(self.senders)
        own = self.heads if receiver.endswith("mlp") and not self.parallel else 0
        return 1 + int(receiver[1]) * (self.heads + 1) + own

    def scores(self, *, embed: float = 1.0) -> Tensor:
        """The score of every edge [sender receiver], NaN where there is none.

        Args:
            embed: at which point between the corrupt (0) and the clean embeddings (1) to differentiate.
        """
        scores = []
        for word in self.rows:
            clean, corrupt = (
                self.cached(row[word])["blocks.0.hook_resid_pre"] for row in (self.rows, self.others)
            )
            moved = embed * clean + (1 - embed) * corrupt
            hook = ("blocks.0.hook_resid_pre", lambda x, hook, moved=moved: moved)
            scores.append(self.of_word(word, [] if embed == 1 else [hook]))
        return scores[0] - scores[1]

    def scores_of_own_runs(self, point: float) -> Tensor:
        """Every sender's edges from a run in which it (all heads of a layer together) stands at a point."""
        scores = torch.full(self.exists().shape, torch.nan, dtype=torch.float64)
        for name in dict.fromkeys(map(self.hook_name, self.senders)):
            own = [place for place, sender in enumerate(self.senders) if self.hook_name(sender) == name]
            parts = []
            for word in self.rows:
                clean, corrupt = (self.cached(row[word])[name] for row in (self.rows, self.others))
                moved = point * clean + (1 - point) * corrupt
                hook = (name, lambda x, hook, moved=moved: moved)
                parts.append(self.of_word(word, [hook], at={name: moved}))
            scores[own] = (parts[0] - parts[1])[own]
        return scores

    def hook_name(self, sender: str) -> str:
        """Where a sender's write is seen."""
        if sender == "embed":
            return "blocks.0.hook_resid_pre"
        return f"blocks.{sender[1]}." + ("hook_mlp_out" if sender.endswith("mlp") else "attn.hook_z")

    def of_word(self, word: str, hooks: list[Any], at: dict[str, Tensor] | None = None) -> Tensor:
        """The derivative of one word's log-probability in the masks, in a run with further hooks."""
        clean, corrupt = self.cached(self.rows[word]), self.cached(self.others[word])
        point = {name: clean[name] for name in map(self.hook_name, self.senders)} | (at or {})
        names, streams = self.receivers, dict[str, Tensor]()
        masks = torch.zeros(len(self.senders), len(names), dtype=torch.float64, requires_grad=True)

        def extra(place: int) -> Tensor:
            count = self.count(names[place])
            parts = [
                self.write(s, masks[i, place], clean, corrupt, point)
                for i, s in enumerate(self.senders[:count])
            ]
            return torch.stack(parts).sum(0)

        def keep(stream: Tensor, hook: Any) -> None:
            streams[hook.name] = stream

        starts = [(f"blocks.{layer}.ln1.hook_in", keep) for layer in range(self.layers)]
        readers = [
            self.reader(name, streams, lambda place=place: extra(place)) for place, name in enumerate(names)
        ]
        with torch.enable_grad():
            logits = self.bridge.run_with_hooks(self.rows[word].tokens, fwd_hooks=[*hooks, *starts, *readers])
            (gradients,) = torch.autograd.grad(answer_logprob(logits, self.rows[word].labels).sum(), masks)
        return torch.where(self.exists(), gradients, torch.nan)

    def write(self, sender: str, mask: Tensor, clean: Any, corrupt: Any, point: Any) -> Any:
        """What a sender writes beyond its write at a point, at a mask."""
        name = self.hook_name(sender)
        change = corrupt[name] - clean[name]
        if "head" not in sender:
            return mask * change
        own = torch.zeros(change.shape[2], 1, dtype=torch.float64)
        own[int(sender.split("[")[1][0])] = 1
        layer = int(sender[1])
        return self.written(layer, point[name] + mask * own * change) - self.written(layer, point[name])

    def reader(self, receiver: str, streams: dict[str, Tensor], extra: Any) -> tuple[str, Any]:
        """The hook through which one receiver alone reads more than the stream."""
        block = f"blocks.{receiver[1]}."
        if receiver.endswith("resid_post"):
            return f"{block}hook_resid_post", lambda x, hook: x + extra()
        if receiver.endswith("mlp"):
            # Written to the norm alone: the stream runs on past it.
            return f"{block}ln2.hook_in", lambda x, hook: x + extra()
        part, unit = receiver[-1], int(receiver.split("[")[1][0])

        def read(x: Tensor, hook: Any) -> Any:
            stream, layer = streams[f"{block}ln1.hook_in"], int(receiver[1])
            moved = self.project(layer, part, stream + extra()) - self.project(layer, part, stream)
            return x + (torch.arange(x.shape[2]) == unit)[:, None] * moved

        return f"{block}attn.hook_{part}", read


def both_words(twin: Twin, *, corrupt: bool = False, patched: str | None = None) -> float:
    """The metric of a fact, in the clean or the corrupt run, or with one component patched."""
    values = []
    for word, row in (twin.others if corrupt else twin.rows).items():
        hooks = []
        if patched:
            name = twin.hook_name(patched)
            other = twin.cached(twin.others[word])[name]
            hooks = [(name, lambda x, hook, other=other: other)]
        with torch.no_grad():
            logits = twin.bridge.run_with_hooks(row.tokens, fwd_hooks=hooks)
        values.append(float(answer_logprob(logits, row.labels)))
    return values[0] - values[1]
