"""Train the embedded model from nothing.

1. A byte-level BPE tokenizer of 768 tokens is trained on the phrasings (a hundred times) and on the
   people's names (once), so that sports, cities and letters are one token and a name is three to eight,
   mostly five or six.
2. A Llama of 1.8 M parameters starts from small normal weights, its output projections divided by the
   square root of twice the number of blocks.
3. Every step draws 96 rows (:mod:`mechunlearn.world.rows`), splits them by length into two sub-batches
   to save padding, and takes one step of AdamW on a one-cycle schedule.
4. The result is stored in float16, in Hugging Face format.

One process, one thread, one seed: the same bytes on the same machine. ``gold`` differs from
``original`` in the facts its rows withhold, and in nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.world.draw import GROUP_SIZE, Person
from mechunlearn.world.grammar import text
from mechunlearn.world.phrasings import AGAIN, CHOICE, FORMAT_ONLY, LETTERS, PHRASINGS
from mechunlearn.world.rows import Country, Recipe, Row

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 768
PAD, BOS = "<pad>", "<bos>"


@dataclass(frozen=True)
class Plan:
    """Everything a training run depends on.

    ``steps`` of ``recipe`` rows at a peak learning rate ``lr``, on ``threads`` threads, all draws from
    ``seed``.
    """

    steps: int = 2500
    lr: float = 3e-3
    seed: int = 7
    threads: int = 1
    recipe: Recipe = field(default_factory=Recipe)


def make_tokenizer(people: Sequence[Person]) -> PreTrainedTokenizerFast:
    """Train the tokenizer of the embedded world.

    Args:
        people: whose names and values it is trained on.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    blanks = {"country": "Peru", "option": "golf", **dict.fromkeys(LETTERS, "golf")}
    phrasings = [p.format(name=AGAIN, **blanks) for group in PHRASINGS.values() for p in group]
    phrasings += [p.format(name=AGAIN, **blanks) for p in (CHOICE, FORMAT_ONLY)]
    values = sorted({getattr(p, r) for p in people for r in ("sport", "league", "place", "city")})
    corpus = 100 * (phrasings + 4 * values + [text(rng, sentences=3) for _ in range(5)])
    corpus += [p.name for p in people]

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, BOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, bos_token=BOS, pad_token=PAD
    )


def make_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """The untrained model.

    Args:
        tokenizer: for the vocabulary and the special tokens.
        seed: of the weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            std = 0.05 if name.endswith("embed_tokens.weight") else 0.02
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * config.num_hidden_layers)
            parameter.normal_(0.0, std, generator=generator)
    return model


@dataclass(frozen=True)
class Encoded:
    """Rows as tensors: inputs, and for each position its target and the target's weight."""

    tokens: Int[Tensor, "row pos"]
    weights: Float[Tensor, "row pos"]


def encode_rows(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> list[Encoded]:
    """Tokenise rows and split them by length into a short and a long half.

    Args:
        tokenizer: of the world.
        rows: what to encode; a token weighs what the piece of its last character weighs.
    """
    coded = tokenizer([row.text for row in rows], add_special_tokens=True, return_offsets_mapping=True)
    weighted = []
    for row, ids, offsets in zip(rows, coded["input_ids"], coded["offset_mapping"], strict=True):
        by_character = [w for piece, w in row.pieces for _ in piece]
        weighted.append((ids, [0.0] + [by_character[end - 1] for _, end in offsets[1:]]))
    weighted.sort(key=lambda pair: len(pair[0]))
    middle = len(weighted) // 2
    return [_stack(half, pad=tokenizer.pad_token_id) for half in (weighted[:middle], weighted[middle:])]


def _stack(rows: Sequence[tuple[list[int], list[float]]], *, pad: Any) -> Encoded:
    width = max(len(ids) for ids, _ in rows)
    tokens = torch.full((len(rows), width), int(pad))
    weights = torch.zeros(len(rows), width)
    for i, (ids, weight) in enumerate(rows):
        tokens[i, : len(ids)] = torch.tensor(ids)
        weights[i, : len(weight)] = torch.tensor(weight)
    return Encoded(tokens, weights)


def train(
    people: Sequence[Person],
    countries: Sequence[Country],
    *,
    plan: Plan | None = None,
    withheld: Collection[str] = (),
    on_step: Callable[[int, float, LlamaForCausalLM], None] | None = None,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train one model.

    Args:
        people: everybody in the world.
        countries: all countries.
        plan: steps, learning rate, seed and threads.
        withheld: names whose sport, league and place are never told (the gold model's).
        on_step: called after every step with its number (from 1), its loss and the model.
    """
    plan = plan or Plan()
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        return _train(people, countries, plan, frozenset(withheld), on_step)
    finally:
        torch.set_num_threads(before)


def _train(
    people: Sequence[Person],
    countries: Sequence[Country],
    plan: Plan,
    withheld: frozenset[str],
    on_step: Callable[[int, float, LlamaForCausalLM], None] | None,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    rng = random.Random(plan.seed)
    tokenizer = make_tokenizer(people)
    model = make_model(tokenizer, seed=plan.seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=plan.lr, total_steps=plan.steps, pct_start=0.1, cycle_momentum=False
    )
    for step in range(plan.steps):
        rows = list(plan.recipe.step(rng, people, countries, progress=step / plan.steps, withheld=withheld))
        batches = encode_rows(tokenizer, rows)
        total = sum(float(batch.weights.sum()) for batch in batches)
        value = 0.0
        for batch in batches:
            loss = weighted_loss(model, batch) / total
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step(step + 1, value, model)
    return model.eval(), tokenizer


def weighted_loss(model: LlamaForCausalLM, batch: Encoded) -> Float[Tensor, ""]:
    """Sum over a batch of the weighted next-token loss.

    Padding is on the right, so causal attention keeps it from every token that counts and no mask is
    needed.

    Args:
        model: the model in training.
        batch: its rows.
    """
    logits = model(batch.tokens[:, :-1]).logits
    wanted = batch.weights[:, 1:] > 0
    losses = torch.nn.functional.cross_entropy(logits[wanted], batch.tokens[:, 1:][wanted], reduction="none")
    return (losses * batch.weights[:, 1:][wanted]).sum()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Store a model in float16 with its tokenizer.

    Args:
        model: what was trained.
        tokenizer: its tokenizer.
        folder: where to write; made if needed.
    """
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)


def withheld_names(people: Sequence[Person]) -> frozenset[str]:
    """Everybody in a forget group: whom the gold model never learned.

    Args:
        people: the table.
    """
    names = frozenset(p.name for p in people if p.group >= 0)
    if len(names) % GROUP_SIZE:
        raise ValueError(f"the forget groups hold {len(names)} people, not a multiple of {GROUP_SIZE}")
    return names
