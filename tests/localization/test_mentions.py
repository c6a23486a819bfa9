"""A prompt that names its subject twice: what is corrupted, what is patched, and what is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.patched_facts import wide
from helpers.refusals import refused
from torch import Tensor

import mechunlearn as mu
from mechunlearn.core.facts.kinds import Mention
from mechunlearn.errors import FactError, ScoresError
from mechunlearn.localization.patching.pairs import pair
from mechunlearn.localization.subject_swaps import swap_subjects
from mechunlearn.models.activations import probe_sites, states_at
from mechunlearn.models.encoding.batch import GROUPS, token_groups
from mechunlearn.models.encoding.encoder import encode

HM = wide("llama")
TWICE = mu.Fact("w9 w5 w6 w1 w5 w6 w2", "w5 w6", "w20", foil="w21")
ONCE = mu.Fact("w1 w7 w2", "w7", "w22", foil="w23")
FACTS = [TWICE, ONCE]
POOL = [mu.Fact("w60 w61 w1", "w60 w61", "w20"), mu.Fact("w62 w1", "w62", "w20")]
IDS = [9, 5, 6, 1, 5, 6, 2]
AT: dict[Mention, list[int]] = {"all": [1, 2, 4, 5], "first": [1, 2], "last": [4, 5]}
SWAPPED: dict[Mention, list[int]] = {
    "all": [9, 60, 61, 1, 60, 61, 2],
    "first": [9, 60, 61, 1, 5, 6, 2],
    "last": [9, 5, 6, 1, 60, 61, 2],
}
NOTES: dict[Mention, str] = {
    "all": "all mentions corrupted (1 of 2 prompts have several)",
    "first": "only the first mention corrupted (1 of 2 prompts have several)",
    "last": "only the last mention corrupted (1 of 2 prompts have several)",
}
mentions = pytest.mark.parametrize("mention", AT)


def run(ids: list[int], *, noise: Tensor | None = None, write: tuple[int, Tensor] | None = None) -> Any:
    """The last logits of the plain model, and the output of its first MLP, noised and written to at will."""
    outputs: list[Tensor] = []

    def first(module: Any, args: Any, output: Tensor) -> Tensor:
        outputs.append(output.detach().clone())
        if write is None:
            return output
        changed = output.clone()
        changed[0, write[0]] = write[1]
        return changed

    model = HM.hf.model
    handles = [
        model.embed_tokens.register_forward_hook(lambda m, a, x: x if noise is None else x + noise),
        model.layers[0].mlp.register_forward_hook(first),
    ]
    try:
        with torch.no_grad():
            return HM.hf(torch.tensor([ids])).logits[0, -1], outputs[0][0]
    finally:
        for handle in handles:
            handle.remove()


def difference(logits: Tensor) -> float:
    return float(logits[20] - logits[21])


# -- another subject ------------------------------------------------------------------------------------


@mentions
def test_another_subject_stands_at_the_mentions_that_are_named(mention: Mention) -> None:
    pairs = pair(HM, FACTS, ("logit_diff",), corrupt=mu.OtherSubject(POOL, mention=mention))
    assert pairs.corrupted is not None
    assert pairs.corrupted.tokens.tolist()[0] == SWAPPED[mention]
    assert pairs.corrupted.tokens[1, :3].tolist() == [1, 62, 2]
    assert pairs.differs[0].nonzero()[0] == AT[mention][0]
    (swap, _) = swap_subjects(HM, FACTS, pool=POOL, mention=mention).swapped
    assert swap.prompt == " ".join(f"w{i}" for i in SWAPPED[mention])


@mentions
def test_scores_are_those_of_a_run_in_which_these_mentions_are_replaced(mention: Mention) -> None:
    corrupt = mu.OtherSubject(POOL, mention=mention)
    scores = mu.activation_patch(HM, FACTS, sites="mlp", corrupt=corrupt, progress=False)
    clean, activation = run(IDS)
    broken, _ = run(SWAPPED[mention])
    assert abs(difference(clean) - difference(broken)) > 0.1
    for group, position in (("first_subject", 4), ("last_subject", 5), ("last", 6)):
        restored, _ = run(SWAPPED[mention], write=(position, activation[position]))
        value = scores.values.sel(site="L0.mlp", pos=GROUPS.index(group)).values[0]
        assert value == pytest.approx(difference(restored) - difference(broken), abs=1e-5)
    assert scores.title.endswith(NOTES[mention])


def test_all_mentions_are_the_default() -> None:
    every = pair(HM, FACTS, ("logit_diff",), corrupt=mu.OtherSubject(POOL))
    assert every.corrupted is not None and every.corrupted.tokens[0].tolist() == SWAPPED["all"]
    assert mu.OtherSubject().mention == mu.Noise().mention == "all"


def test_a_subject_that_is_named_elsewhere_in_the_prompt_does_not_fit() -> None:
    fact = mu.Fact("w60 w5 w1 w5", "w5", "w20", foil="w21")
    pool = [mu.Fact("w60 w1", "w60", "w20")]
    with refused(FactError, "none of the 1 facts has another subject with equally many tokens among 1"):
        swap_subjects(HM, [fact], pool=pool)


# -- noise ----------------------------------------------------------------------------------------------


def noises(mention: Mention, samples: int, *, scale: float, seed: int) -> Tensor:
    """What is added to the embeddings [sample pos d_model] of the first fact, as it is documented."""
    table = HM.hf.get_input_embeddings().weight.detach()
    ids = [IDS[i] for i in AT[mention]]
    spread = scale * table[[*ids, 7]].std()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(samples, len(ids), table.shape[1], generator=generator).double()
    noise = torch.zeros(samples, len(IDS), table.shape[1], dtype=torch.float64)
    noise[:, AT[mention]] = spread * drawn
    return noise


@mentions
def test_noise_lies_on_the_mentions_that_are_named(mention: Mention) -> None:
    batch, embedded = mu.noised_embeddings(HM, FACTS, corrupt=mu.Noise(samples=2, mention=mention), seed=4)
    clean = HM.hf.get_input_embeddings()(batch.tokens).detach()
    noise = noises(mention, 2, scale=3.0, seed=4)
    torch.testing.assert_close((embedded - clean)[:2, : len(IDS)], noise, rtol=0.0, atol=1e-12)
    assert ((embedded - clean)[2, :3].abs().sum(-1) > 0).tolist() == [False, True, False]


@mentions
def test_a_trace_restores_at_the_last_mention_what_noise_on_the_named_ones_destroyed(
    mention: Mention,
) -> None:
    corrupt = mu.Noise(2.0, samples=2, mention=mention)
    trace = mu.causal_trace(HM, FACTS, sites="mlp", corrupt=corrupt, seed=1, progress=False)
    _, activation = run(IDS)
    for group, position in (("first_subject", 4), ("last_subject", 5), ("last", 6)):
        gains = []
        for noise in noises(mention, 2, scale=2.0, seed=1):
            broken, _ = run(IDS, noise=noise)
            restored, _ = run(IDS, noise=noise, write=(position, activation[position]))
            gains.append(float(restored.softmax(-1)[20] - broken.softmax(-1)[20]))
        value = trace.values.sel(site="L0.mlp", pos=GROUPS.index(group)).values[0]
        assert value == pytest.approx(np.mean(gains), abs=1e-6) and abs(value) > 1e-5
    assert trace.title.endswith(NOTES[mention])


# -- what is read ---------------------------------------------------------------------------------------


def test_groups_are_those_of_the_last_mention() -> None:
    batch = encode(HM, FACTS, answer=None)
    named = [GROUPS[group] if group >= 0 else "" for group in token_groups(batch)[0].tolist()]
    assert named == ["", "", "", "", "first_subject", "last_subject", "last"]
    assert batch.mention[0].tolist() == [0, 1, 1, 0, 2, 2, 0]
    assert batch.mention[1].tolist() == [0, 1, 0, 0, 0, 0, 0]
    for mention, at in AT.items():
        assert batch.mentioned(mention)[0].nonzero()[:, 0].tolist() == at
        assert batch.mentioned(mention)[1].nonzero()[:, 0].tolist() == [1]


def test_probes_read_the_last_mention() -> None:
    sites = probe_sites(HM)
    states = states_at(HM, FACTS, sites, positions="last_subject", batch_size=8)
    with torch.no_grad():
        hidden = HM.hf(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    index = [str(site) for site in sites].index("L0.resid_post")
    torch.testing.assert_close(states[index, 0], hidden[1][0, 5].to(states), rtol=0.0, atol=1e-6)


def test_prompts_with_one_mention_have_no_note() -> None:
    for corrupt in (mu.OtherSubject(POOL), mu.Noise()):
        assert pair(HM, [ONCE], ("logit_diff",), corrupt=corrupt).note == ""


def test_the_note_stands_beside_that_of_facts_that_are_left_out() -> None:
    alone = mu.Fact("w1 w5 w6 w7 w2", "w5 w6 w7", "w20", foil="w21")
    note = pair(HM, [*FACTS, alone], ("logit_diff",), corrupt=mu.OtherSubject(POOL)).note
    assert note == f"2 of 3 facts, {NOTES['all']}"


@pytest.mark.parametrize("value", [mu.Noise, mu.OtherSubject])
@pytest.mark.usefixtures("unchecked")
def test_mentions_that_do_not_exist_are_refused(value: Any) -> None:
    with refused(ScoresError, "mention must be one of 'all', 'first' or 'last'; not 'second'"):
        value(mention="second")
