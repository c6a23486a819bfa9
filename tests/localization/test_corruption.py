"""Clean and corrupted runs side by side: aligned rows, seeded noise, ablations, and all refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.patched_facts import FACTS, METRICS, OTHERS, SHORT, agrees, patch, wide
from helpers.patching_twin import FactTwin, Prompt, values, word_tokenizer
from helpers.patching_twin import full_softmax as full_softmax
from torch import Tensor

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import FactError, MechUnlearnError, ScoresError, SiteError
from mechunlearn.localization.patching.activation import activation_patch
from mechunlearn.localization.patching.corruption import (
    ANY,
    PAIRED,
    MeanAblation,
    Noise,
    OtherSubject,
    Resample,
    ZeroAblation,
    corruption_of,
)
from mechunlearn.localization.patching.pairs import Pairs, pair

LOGIT: Any = ("logit_diff",)


@pytest.mark.parametrize(
    ("short", "value"),
    [
        ("subject", OtherSubject(seed=7)),
        ("noise", Noise(3.0, samples=3, seed=7)),
        ("zero", ZeroAblation()),
        ("mean", MeanAblation()),
        ("resample", Resample(seed=7)),
    ],
)
def test_a_short_form_takes_the_seed_of_the_verb(short: Any, value: Any) -> None:
    assert corruption_of(short, ANY, seed=7) == value


@pytest.mark.parametrize("value", [OtherSubject(FACTS, seed=0), Noise(seed=0), Resample(seed=0)])
def test_the_seed_of_a_value_wins(value: Any) -> None:
    assert corruption_of(value, ANY, seed=7) is value


@pytest.mark.parametrize("corrupt", ["zero", ZeroAblation()])
def test_a_corruption_that_a_verb_cannot_use_is_an_error(corrupt: Any) -> None:
    with pytest.raises(
        ScoresError,
        match=r"'subject' or 'noise'; not .*[zZ]ero.*, or a list of facts; with options: mu.OtherSubject",
    ):
        corruption_of(corrupt, PAIRED, seed=0)


def streams(pairs: Pairs, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last clean and corrupted states where rows are read first, of all parts."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for _, part in pairs.parts(size):
        both = part.runs(wide("llama"), keep=["blocks.0.hook_mlp_out"])
        at = torch.arange(len(both.answers)), both.answers.positions[:, 0]
        assert (
            "blocks.0.hook_mlp_out" in both.clean.activations
            and "blocks.0.hook_mlp_out" in both.corrupt.activations
        )
        found.append((both.clean.resid[-1][both.rows][at], both.corrupt.resid[-1][at]))
    clean, corrupt = zip(*found, strict=True)
    return torch.cat(clean), torch.cat(corrupt)


@pytest.mark.parametrize("corrupt", [OTHERS, Noise(samples=2)])
def test_runs_do_not_depend_on_the_batch_size(corrupt: Any) -> None:
    pairs = pair(wide("llama"), FACTS, LOGIT, corrupt=corrupt, seed=1)
    whole = streams(pairs, 100)
    for size in (1, 3):
        for found, wanted in zip(streams(pairs, size), whole, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-6)
    again = pair(wide("llama"), FACTS, LOGIT, corrupt=corrupt, seed=1, batch_size=1)
    torch.testing.assert_close(streams(again, 100)[1], whole[1], rtol=0.0, atol=1e-12)
    assert (whole[0] - whole[1]).abs().max() > 0.1 and len(whole[1]) == len(pairs.answers) * pairs.samples


def test_noise_is_scaled_to_the_subjects_drawn_per_fact_and_seeded() -> None:
    hm = wide("llama")

    def draws(scale: float = 3.0, **options: Any) -> list[torch.Tensor]:
        noise = pair(hm, FACTS, LOGIT, corrupt=Noise(scale, samples=200), **options).draws
        assert noise is not None
        return list(noise)

    first = draws(seed=5)
    assert [tuple(draw.shape) for draw in first] == [(200, n, 32) for n in (3, 1, 1, 2)]
    table = hm.params["model.embed_tokens.weight"].detach()
    subjects = torch.cat([table[[int(w[1:]) for w in fact.subject.split()]] for fact in FACTS])
    spread = float(torch.cat([draw.flatten() for draw in first]).std() / subjects.std())
    assert abs(spread - 3.0) < 0.03
    assert all(torch.equal(a, b) for a, b in zip(first, draws(seed=5), strict=True))
    assert not torch.equal(first[0], draws(seed=6)[0])
    torch.testing.assert_close(draws(6.0, seed=5)[0], 2 * first[0])


@pytest.mark.parametrize("denoising", [True, False])
def test_noise_equals_the_twin_with_the_same_noise(denoising: bool) -> None:
    hm, facts, samples = wide("llama"), FACTS[:2], 2
    twin = FactTwin(hm, facts)
    embedding = hm.params["model.embed_tokens.weight"]
    subjects = [embedding[[int(w[1:]) for w in fact.subject.split()]].detach() for fact in facts]
    generator = torch.Generator().manual_seed(3)
    spread = 2.0 * torch.cat(subjects).std()
    noise = [spread * torch.randn(samples, *s.shape, generator=generator).double() for s in subjects]
    sets = [(Site("resid_pre", 1),), (Site("attn", 0),)]
    wanted = []
    for sample in range(samples):

        def corrupted(f: int, word: str, sample: int = sample) -> Prompt:
            return twin.prompt(f, word, noise=noise[f][sample])

        clean, noised = twin.prompt, corrupted
        run, other = (noised, clean) if denoising else (clean, noised)

        def source(f: int, word: str, place: int, other: Any = other) -> dict[str, Tensor]:
            return values(hm, other(f, word))

        wanted.append(twin.table(sets, "groups", METRICS[:2], run, source))
    options: dict[str, Any] = {"corrupt": Noise(2.0, samples), "seed": 3, "metric": METRICS[:2]}
    found = patch(
        hm,
        facts,
        sites=[s[0] for s in sets],
        direction="denoising" if denoising else "noising",
        **options,
    )
    agrees(found, torch.stack(wanted).mean(0))


def test_ablations_equal_the_twin() -> None:
    hm, facts = wide("mistral"), SHORT
    sets = [(Site("mlp", 0),), (Site("head", 1, 1),), (Site("resid_post", 0),)]
    sites, twin = [some[0] for some in sets], FactTwin(hm, facts)
    kept = [values(hm, twin.prompt(f, fact.answer)) for f, fact in enumerate(facts)]
    at = [twin.places(f, fact.answer, "groups") for f, fact in enumerate(facts)]

    def mean(f: int, word: str, place: int) -> dict[str, Tensor]:
        found = {}
        for name in (name for name in kept[f] if "pattern" not in name):
            there = torch.cat([kept[g][name][0, at[g][place]] for g in range(len(facts))])
            found[name] = there.mean(0).expand_as(kept[f][name])
        return found

    zero = [{name: torch.zeros_like(value) for name, value in some.items()} for some in kept]
    agrees(
        patch(hm, facts, sites=sites, corrupt="zero"),
        twin.table(sets, "groups", METRICS[:1], twin.prompt, lambda f, *_: zero[f])[..., 0],
    )
    agrees(
        patch(hm, facts, sites=sites, corrupt="mean"),
        twin.table(sets, "groups", METRICS[:1], twin.prompt, mean)[..., 0],
    )
    # Of the last two, each is the only one that has the groups of the other: who is drawn is known.
    two = FactTwin(hm, facts[2:])
    wanted = two.table(
        sets, "groups", METRICS[:1], two.prompt, lambda f, w, place: moved(kept[3 - f], at[3 - f], at[2 + f])
    )
    agrees(patch(hm, facts[2:], sites=sites, corrupt="resample"), wanted[..., 0])


def moved(other: dict[str, Tensor], theirs: list[list[int]], mine: list[list[int]]) -> dict[str, Tensor]:
    """Another fact's values, each group's moved to where the fact has it, ends together."""
    found = {}
    for name in (name for name in other if "pattern" not in name):
        found[name] = torch.zeros(1, 10, *other[name].shape[2:], dtype=torch.float64)
        for own, there in zip(mine, theirs, strict=True):
            for rank in range(1, len(own) + 1):
                found[name][0, own[-rank]] = other[name][0, there[max(0, len(there) - rank)]]
    return found


def test_another_subject_stands_where_the_facts_own_stood() -> None:
    hm, text = wide("llama"), word_tokenizer()
    facts = [
        Fact(f"w1 {name} w4", name, "w20", foil="w21")
        for name in ("w5", "w6 w7", "w8", "w9 w10", "w11 w12 w13")
    ]
    pairs = pair(hm, facts, LOGIT, corrupt="subject", seed=0)
    assert pairs.note == "4 of 5 facts" and pairs.index == (0, 1, 2, 3) and pairs.corrupted is not None
    for own, other in zip(pairs.answers.batch.tokens, pairs.corrupted.tokens, strict=True):
        one, two = text.decode(own).split(), text.decode(other).split()
        assert one[0] == two[0] == "w1" and one[1] != two[1] and len(one) == len(two)
    assert torch.equal(pairs.answers.batch.subject, pairs.corrupted.subject)
    elsewhere = pair(hm, facts, LOGIT, corrupt=OtherSubject([Fact("w1 w60 w4", "w60", "w20")]))
    assert (
        elsewhere.index == (0, 2)
        and elsewhere.corrupted is not None
        and elsewhere.corrupted.tokens[:, 1].tolist() == [60, 60]
    )


def test_facts_asked_in_the_corrupted_prompt_are_asked_for_the_clean_words() -> None:
    pairs = pair(wide("llama"), FACTS, LOGIT, corrupt=OTHERS)
    assert pairs.corrupted is not None and torch.equal(pairs.corrupted.mask, pairs.answers.batch.mask)
    differ = pairs.answers.batch.tokens != pairs.corrupted.tokens
    assert torch.equal(differ, pairs.answers.batch.subject)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"corrupt": "subjects"},
            ScoresError,
            "corrupt must be one of 'subject', .* 'mean' or 'resample'; not 'subjects', or a list of facts",
        ),
        ({"corrupt": OTHERS[:2]}, FactError, "corrupt gives 2 prompts for 4 facts; give one for each"),
        (
            {"corrupt": OTHERS[::-1]},
            FactError,
            "has 19 tokens and 'w5 w6 w7 w8 w9 w10' has 6; .* give prompts of equal length",
        ),
        (
            {"corrupt": OtherSubject([Fact("w1 w2 w3 w4 w5", "w1 w2 w3 w4", "w20")])},
            FactError,
            "none of the 4 facts has another subject .* among 1; give more facts of the same relation",
        ),
        (
            {"corrupt": "resample"},
            FactError,
            "none of the 4 facts has the same token groups as number 0, .* give more facts",
        ),
        (
            {"corrupt": "mean", "sites": "pattern"},
            FactError,
            "attention patterns of different prompts do not fit .* have no mean",
        ),
        (
            {"corrupt": "zero", "direction": "denoising"},
            ScoresError,
            "'zero' is an ablation of the clean run, without a second",
        ),
        (
            {"corrupt": "mean", "normalized": True},
            ScoresError,
            'leave out direction= and normalized=, or use corrupt="subject"',
        ),
        (
            {"direction": "forward"},
            ScoresError,
            "direction must be one of 'denoising' or 'noising'; not 'forward'",
        ),
        (
            {"positions": "every"},
            ScoresError,
            "positions must be one of 'groups', 'each' or 'all'; not 'every'",
        ),
        (
            {"sites": "residual"},
            ScoresError,
            "sites must be one of 'resid_pre', .*; not 'residual', or sites such as",
        ),
        ({"sites": ()}, ScoresError, r"sites names one or more of .*; not \(\)"),
        ({"sites": {Site("mlp", 0): []}}, ScoresError, "sites names one or more of"),
        (
            {"sites": [Site("mlp", 9)]},
            SiteError,
            "L9.mlp is not a site of this model: its layers are L0 to L1",
        ),
        ({"sites": [Site("head", 0, 0, "k")]}, SiteError, "kv"),
        (
            {"sites": [Site("mlp", 0, None, "in")]},
            SiteError,
            "L0.mlp.in names weights, not an activation to patch; give",
        ),
        ({"sites": [Site("embed")]}, SiteError, "embed names weights, not an activation to patch"),
        (
            {"sites": [Site("embed")], "window": 3},
            SiteError,
            "a window needs sites that lie in a layer; leave out embed",
        ),
        ({"window": 0}, ScoresError, "window must be above zero; not 0"),
        ({"batch_size": 0}, ScoresError, "batch_size must be above zero; not 0"),
        ({"budget": 0}, ScoresError, "budget must be above zero; not 0"),
        ({"metric": "logits"}, ScoresError, "metric must be one of"),
    ],
)
def test_what_cannot_be_patched_is_an_error(
    options: dict[str, Any], kind: type[MechUnlearnError], message: str, unchecked: None
) -> None:
    with pytest.raises(kind, match=message):
        activation_patch(wide("llama"), FACTS, **{"corrupt": OTHERS, "progress": False, **options})


def test_one_fact_alone_has_no_mean_to_write() -> None:
    with pytest.raises(FactError, match=r"the mean of one fact is its own activation.*needs two"):
        activation_patch(wide("llama"), FACTS[:1], corrupt="mean", progress=False)


def test_runs_that_do_not_differ_have_no_shares() -> None:
    with pytest.raises(ScoresError, match=r"normalized=True divides by the difference .*another corruption"):
        activation_patch(wide("llama"), FACTS, corrupt=FACTS, normalized=True, progress=False)


def test_a_fact_that_is_left_out_leaves_the_numbers_of_the_others_alone() -> None:
    stranger = Fact("w9 w1", "w9", "w20", foil="w21", relation="a relation of its own")
    scores = activation_patch(wide("llama"), [stranger, *FACTS], corrupt="subject", progress=False)
    alone = activation_patch(wide("llama"), FACTS, corrupt="subject", progress=False)
    assert scores.values["fact"].values.tolist() == [
        1 + fact for fact in alone.values["fact"].values.tolist()
    ]


def test_parallel_blocks_have_no_state_between_attention_and_mlp() -> None:
    with pytest.raises(
        SiteError,
        match=r"runs attention and MLP in parallel, so there is no L0\.resid_mid; use L0\.resid_post",
    ):
        activation_patch(wide("neox"), SHORT, sites="resid_mid", corrupt="zero", progress=False)


def test_without_facts_or_without_another_answer_there_is_nothing_to_measure() -> None:
    with pytest.raises(FactError, match="there are no facts to encode; give at least one"):
        activation_patch(wide("llama"), [], progress=False)
    bare = [Fact("w1 w2", "w1", "w20"), Fact("w3 w2", "w3", "w20")]
    with pytest.raises(
        FactError, match="nothing to compare its answer 'w20' with; give it `foil=`, `new=` or `options=`"
    ):
        activation_patch(wide("llama"), bare, progress=False)
    found = activation_patch(wide("llama"), bare, metric="probability", progress=False).values
    assert np.abs(found.values[~np.isnan(found.values)]).max() > 0
