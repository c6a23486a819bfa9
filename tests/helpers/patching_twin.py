"""Patching by its definition: plain torch hooks, and one complete run of one unpadded prompt per job.

It shares only hook points with the engine, and knows for itself which site lies where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import pad

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.site import Site
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel

Change = Callable[[Tensor], Tensor]
POINTS = {"resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post", "attn": "hook_attn_out",
          "mlp": "hook_mlp_out", "pattern": "attn.hook_pattern", "neuron": "mlp.hook_post"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Prompt:
    """Tokens [1 pos], and what is added to their embeddings, if anything."""

    tokens: Tensor
    noise: Tensor | None = None

    def changes(self) -> list[tuple[str, Change]]:
        noise = self.noise
        return [] if noise is None else [("hook_embed", lambda x: x + noise)]


def point(site: Site) -> str:
    """The hook point of a site; ``resid_mid`` has only a name."""
    part = (
        "resid_mid" if site.kind == "resid_mid" else POINTS.get(site.kind) or f"attn.hook_{site.part or 'z'}"
    )
    return f"blocks.{site.layer}.{part}"


@pytest.fixture(autouse=True)
def full_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax in its scores' precision: rounded to float32, as some families do, nothing agrees to 1e-10."""
    plain, method = torch.nn.functional.softmax, torch.Tensor.softmax

    def full(scores: Tensor, dim: int = -1, *, dtype: Any = None, **other: Any) -> Tensor:
        return plain(scores, dim=dim, dtype=None if scores.dtype == torch.float64 else dtype)

    def full_method(scores: Tensor, dim: int, dtype: Any = None) -> Tensor:
        return method(scores, dim, dtype=None if scores.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", full)
    monkeypatch.setattr(torch.Tensor, "softmax", full_method)


@contextmanager
def hooked(hm: HookedModel, changes: Iterable[tuple[str, Change]]) -> Iterator[None]:
    """Torch hooks on the modules that the hook points are, gone at the end."""
    with ExitStack() as stack:
        for name, change in changes:
            module = hm.bridge.hook_dict[name]
            handle = module.register_forward_hook(lambda m, i, o, change=change: change(o))
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def logits(hm: HookedModel, prompt: Prompt, changes: Iterable[tuple[str, Change]] = ()) -> Tensor:
    """All logits [pos d_vocab] of one prompt with changes on the way, in order."""
    with hooked(hm, [*prompt.changes(), *changes]):
        result: Tensor = hm.bridge(prompt.tokens)[0]
    return result


def values(hm: HookedModel, prompt: Prompt, changes: Iterable[tuple[str, Change]] = ()) -> dict[str, Tensor]:
    """Every activation a site may mean, by name; ``resid_mid`` is the true stream, summed up."""
    states: dict[str, Tensor] = {}

    def keep(name: str) -> tuple[str, Change]:
        def read(x: Tensor) -> Tensor:
            states[name] = x.clone()
            return x

        return name, read

    layers, points = range(hm.arch.shape.n_layers), (*POINTS.values(), *(f"attn.hook_{p}" for p in "qkvz"))
    logits(hm, prompt, [*changes, *(keep(f"blocks.{layer}.{p}") for layer in layers for p in points)])
    for layer in layers:
        block = f"blocks.{layer}."
        middle = states[f"{block}hook_resid_pre"] + states[f"{block}hook_attn_out"]
        states[point(Site("resid_mid", layer))] = middle
    return states


def writes(
    hm: HookedModel, sites: Iterable[Site], source: Mapping[str, Tensor], at: Sequence[int] | Tensor
) -> list[tuple[str, Change]]:
    """The changes that write a source's values at positions `at`, site by site."""
    done: list[tuple[str, Change]] = []
    for site in sorted(sites, key=lambda site: site.kind == "resid_mid"):
        if site.kind == "resid_mid":
            done += _middle(site, source[point(site)], at)
        else:
            done.append((point(site), _write(site, source[point(site)], at, hm.arch.d_head)))
    return done


def _write(site: Site, value: Tensor, at: Sequence[int] | Tensor, d_head: int) -> Change:
    width = 1 if site.kind == "neuron" else d_head
    at = torch.as_tensor(at, dtype=torch.long)

    def write(x: Tensor) -> Tensor:
        x = x.clone()
        for p in at.tolist():
            if site.kind == "pattern":
                x[0, site.index, p] = value[0, site.index, p, : x.shape[-1]]
            elif site.index is None:
                x[0, p] = value[0, p]
            else:
                # Torch hooks see heads side by side in one vector.
                unit = slice(site.index * width, (site.index + 1) * width)
                x[0, p, unit] = value[0, p, unit]
        return x

    return write


def _middle(site: Site, value: Tensor, at: Sequence[int] | Tensor) -> list[tuple[str, Change]]:
    """The stream between attention and MLP passes no hook point, so attention adds what is missing."""
    before: dict[str, Tensor] = {}
    at = torch.as_tensor(at, dtype=torch.long)

    def write(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, at] = value[0, at] - before["resid"][0, at]
        return x

    def read(x: Tensor) -> Tensor:
        before["resid"] = x
        return x

    block = f"blocks.{site.layer}."
    return [(f"{block}hook_resid_pre", read), (f"{block}hook_attn_out", write)]


def word_tokenizer(size: int = 96) -> Any:
    """Every word a token, and no BOS: w0, w1, …"""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=words)


class FactTwin:
    """Facts patched one by one: every word of every fact is scored whole, in a run of its own.

    Args:
        hm: the model, in float64.
        facts: the facts.
        others: for every fact the prompt that corrupts it.
    """

    def __init__(self, hm: HookedModel, facts: Sequence[Fact], others: Sequence[Fact] | None = None) -> None:
        self.hm, self.facts, self.others = hm, facts, others
        self.row = cache(lambda f, word: encode(hm, [facts[f]], answer=[word]))

    def prompt(self, f: int, word: str, *, other: bool = False, noise: Tensor | None = None) -> Prompt:
        """A prompt with all of a word's tokens but the last, which is only asked for."""
        others = self.others if other else None
        row = self.row(f, word) if others is None else encode(self.hm, [others[f]], answer=[word])
        added = None
        if noise is not None:
            added = torch.zeros(row.tokens.shape[1] - 1, noise.shape[-1], dtype=noise.dtype)
            added[row.subject[0, :-1]] = noise
        return Prompt(row.tokens[:, :-1], added)

    def places(self, f: int, word: str, positions: str) -> list[list[int]]:
        """The positions that each place means in the prompt with a word."""
        row = self.row(f, word)
        own, end, size = row.subject[0].nonzero()[:, 0].tolist(), int(row.end), row.tokens.shape[1] - 1
        if positions == "all":
            return [list(range(size))]
        read = list(range(end, size))
        if positions == "each":
            return [*([p] for p in range(end)), read]
        first = own[:1] if len(own) > 1 else []
        if own[-1] == end:
            return [first, own[1:-1], read, [], []]
        return [first, own[1:-1], own[-1:], list(range(own[-1] + 1, end)), read]

    def table(
        self,
        sets: Iterable[Sequence[Site]],
        positions: str,
        metrics: Sequence[Any],
        run: Callable[[int, str], Prompt],
        source: Callable[[int, str, int], Mapping[str, Tensor]],
    ) -> Tensor:
        """The change of every metric [fact site place metric]; not-a-number where a fact has no such place.

        Args:
            sets: the sites written together.
            positions: ``"groups"``, ``"each"`` or ``"all"``.
            metrics: what is measured.
            run: the prompt that is patched, of a fact with a word.
            source: the values written, of a fact with a word at a place.
        """
        sets, answers = list(sets), [fact.answer for fact in self.facts]
        count = max(len(self.places(f, word, positions)) for f, word in enumerate(answers))
        effects = torch.full((len(answers), len(sets), count, len(metrics)), torch.nan, dtype=torch.float64)
        for f, word in enumerate(answers):
            before = [
                self.score(f, metric, cache(lambda w, f=f: logits(self.hm, run(f, w)))) for metric in metrics
            ]
            places = [place for place, at in enumerate(self.places(f, word, positions)) if at]
            for (s, sites), place in product(enumerate(sets), places):

                def patched(w: str, f: int = f, sites: Sequence[Site] = sites, place: int = place) -> Tensor:
                    at = self.places(f, w, positions)[place]
                    return logits(self.hm, run(f, w), writes(self.hm, sites, source(f, w, place), at))

                once = cache(patched)
                after = [self.score(f, metric, once) for metric in metrics]
                effects[f, s, place] = torch.tensor(after, dtype=effects.dtype) - torch.tensor(
                    before, dtype=effects.dtype
                )
        return effects

    def score(self, f: int, metric: Any, run: Callable[[str], Tensor]) -> float:
        """A metric of a fact, given the logits of the run with each word."""
        fact = self.facts[f]
        end = int(self.row(f, fact.answer).end)
        if metric == "logit_diff":
            wrong = [w for w in (fact.foil, fact.new) if w][:1] or [
                o for o in fact.options if o != fact.answer
            ]
            others = sum(self.logprob(f, word, run(word)) for word in wrong) / len(wrong)
            return self.logprob(f, fact.answer, run(fact.answer)) - others
        own = run(fact.answer)
        if metric == "logprob":
            return self.logprob(f, fact.answer, own)
        if metric == "probability":
            return math.exp(self.logprob(f, fact.answer, own))
        if callable(metric):
            return float(metric(own[end : end + 1], torch.tensor([f]))[0])
        clean = logits(self.hm, self.prompt(f, fact.answer))[end].double().log_softmax(-1)
        return float((clean.exp() * (clean - own[end].double().log_softmax(-1))).sum())

    def logprob(self, f: int, word: str, logits: Tensor) -> float:
        """The log-probability of a whole word."""
        row = self.row(f, word)
        ids, end = row.tokens[0, int(row.end) + 1 :], int(row.end)
        return float(logits[end : end + len(ids)].double().log_softmax(-1).gather(1, ids[:, None]).sum())


def ragged(prompts: Sequence[Tensor]) -> Batch:
    """Prompts [1 pos] of different length as one batch, padded on the right."""
    width = max(prompt.shape[1] for prompt in prompts)
    tokens = torch.cat([pad(prompt, (0, width - prompt.shape[1]), value=1) for prompt in prompts])
    lengths = torch.tensor([prompt.shape[1] for prompt in prompts])
    return Batch(
        tokens=tokens,
        mask=(torch.arange(width) < lengths[:, None]).long(),
        subject=torch.zeros_like(tokens, dtype=torch.bool),
        subject_last=torch.full_like(lengths, -1),
        mention=torch.zeros_like(tokens),
        end=lengths - 1,
        labels=torch.full_like(tokens, -100),
        strings=tuple(("?",) * int(length) for length in lengths),
    )


@dataclass(frozen=True, eq=False)
class AllLogits:
    """Reads all logits at some positions of each row."""

    positions: Tensor
    width: int
    all_logits: bool = True

    @classmethod
    def at(cls, hm: HookedModel, positions: Tensor) -> AllLogits:
        """Read at positions [row answer]."""
        return cls(positions, positions.shape[1] * hm.hf.config.vocab_size)

    def __call__(self, final: Any, rows: Tensor) -> Tensor:
        """The logits of each row, in a line."""
        return torch.flatten(final.logits, 1)
