"""Train the embedded model from nothing.

1. A byte-level BPE tokenizer of 768 tokens is trained on a hundred copies of the phrasings and one of the
   people's names, so that sports, cities and letters are one token and a name is three to eight, mostly five
   or six.
2. A Llama of 1.8 M parameters starts from small normal weights, its output projections divided by the
   square root of twice the number of blocks.
3. Every step draws 96 rows (:mod:`mechunlearn.world.rows`), splits them by length into two sub-batches
   to save padding, and takes one step of AdamW on a one-cycle schedule.
4. The model is saved in float16, in Hugging Face format.

One process, one thread and one seed give the same bytes on the same machine. ``gold`` differs from
``original`` only in the facts that its rows withhold.
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

from mechunlearn.world.grammar import text
from mechunlearn.world.people import GROUP_SIZE, Person
from mechunlearn.world.phrasings import AGAIN, CHOICE, FORMAT_ONLY, LETTERS, PHRASINGS
from mechunlearn.world.rows import Country, Row, RowCounts

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 768
PAD, BOS = "<pad>", "<bos>"


@dataclass(frozen=True)
class Plan:
    """The settings of a training run.

    ``lr`` is the peak learning rate; ``seed`` is the seed of the initial weights and of the rows; ``rows``
    counts the rows of each kind in a step.
    """

    steps: int = 2500
    lr: float = 3e-3
    seed: int = 7
    threads: int = 1
    rows: RowCounts = field(default_factory=RowCounts)


def make_tokenizer(people: Sequence[Person]) -> PreTrainedTokenizerFast:
    """Train the tokenizer of the embedded world on the phrasings and on these people's names and facts."""
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
    """Return the untrained model; the tokenizer gives the ids of the special tokens."""
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
    """Rows as tensors: token ids, and the weight of each token in the loss."""

    tokens: Int[Tensor, "row pos"]
    weights: Float[Tensor, "row pos"]


def encode_rows(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> list[Encoded]:
    """Tokenise rows and split them by length into a short and a long half.

    A token has the weight of the piece that its last character belongs to.
    """
    coded = tokenizer([row.text for row in rows], add_special_tokens=True, return_offsets_mapping=True)
    weighted = []
    for row, ids, offsets in zip(rows, coded["input_ids"], coded["offset_mapping"], strict=True):
        # The first token is <bos>, which has no characters and no weight.
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
    """Train one model, without the sport, league and place of ``withheld`` names.

    ``on_step`` is called after every step with its number (from 1), its loss and the model.
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
        rows = list(plan.rows.draw(rng, people, countries, progress=step / plan.steps, withheld=withheld))
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
    """Sum the weighted next-token loss over a batch."""
    # Padding is on the right: under causal attention no token sees it, so no mask is needed.
    logits = model(batch.tokens[:, :-1]).logits
    weighted = batch.weights[:, 1:] > 0
    targets, weights = batch.tokens[:, 1:][weighted], batch.weights[:, 1:][weighted]
    return (torch.nn.functional.cross_entropy(logits[weighted], targets, reduction="none") * weights).sum()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a model in float16 with its tokenizer, in a folder that is made if it does not exist."""
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)


def withheld_names(people: Sequence[Person]) -> frozenset[str]:
    """Return the names in the forget groups, whose facts the gold model never saw."""
    names = frozenset(p.name for p in people if p.group >= 0)
    if len(names) % GROUP_SIZE:
        raise ValueError(f"the forget groups hold {len(names)} people, not a multiple of {GROUP_SIZE}")
    return names
