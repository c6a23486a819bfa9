"""Lenses against TransformerLens, a decomposition by hand, and a model whose mechanism is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.planted import planted_facts, planted_model
from helpers.tiny_facts import unchecked
from torch import Tensor
from transformer_lens.tools.analysis import logit_lens as their_lens

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.scores import Scores
from mechunlearn.errors import FactError, ModelError, ScoresError
from mechunlearn.localization.answer_tokens import contrast, first_tokens
from mechunlearn.localization.lenses import direct_logit_attribution, logit_lens
from mechunlearn.models.activations import probe_sites
from mechunlearn.models.encoding.batch import GROUPS
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel

# Words that begin with p begin with one token, all others with that of the space: two answers to tell apart.
FACTS = Facts(
    Fact(f"So {name} is in", name, answer, foil=foil)
    for name, answer, foil in (("Bo", "p", "a"), ("Evan", "a", "p"), ("G", "p", "be"), ("Ingrid", "be", "p"))
)


def by_site(scores: Scores) -> dict[str, float]:
    values = scores.reduce().values.values
    return dict(zip(map(str, scores.sites), values.tolist(), strict=True))


@pytest.fixture(scope="module")
def wide(hm: HookedModel) -> HookedModel:
    return hm.to(torch.float64)


@pytest.mark.parametrize("metric", ["logit_diff", "logprob", "probability", "rank"])
def test_the_lens_equals_transformer_lens_on_every_prompt_alone(wide: HookedModel, metric: Any) -> None:
    scores = logit_lens(wide, FACTS, metric=metric, batch_size=3, progress=False)
    assert list(scores.sites) == probe_sites(wide)
    middle = "L0.resid_mid" in map(str, scores.sites)
    ids = first_tokens(wide, FACTS, [contrast(fact) for fact in FACTS]).ids
    for row, fact in enumerate(FACTS):
        tokens = encode(wide, [fact], answer=None).tokens
        kind = {"logprob": "log_probs", "probability": "probs"}.get(metric, "logits")
        reference = their_lens(
            wide.bridge, tokens, incl_mid=middle, targets=ids[row].tolist(), return_type=kind
        )
        answer, foil = reference.values[:, 0].unbind(-1)
        expected = answer - foil if metric == "logit_diff" else answer
        if metric == "rank":
            expected = reference.rank_trajectory(int(ids[row, 0]))[:, 0]
        # Theirs takes the softmax in float32, and some families their norms.
        np.testing.assert_allclose(scores.values[row], expected.numpy(), atol=2e-6)


def test_at_the_end_it_is_the_models_own_logit_difference(wide: HookedModel) -> None:
    last = logit_lens(wide, FACTS, progress=False).values[:, -1]
    for row, fact in enumerate(FACTS):
        assert float(last[row]) == pytest.approx(difference(wide, fact), abs=2e-6)


def test_groups_are_means_of_a_lens_at_every_token(llama: HookedModel) -> None:
    scores = logit_lens(llama, FACTS, positions="groups", batch_size=3, progress=False)
    assert scores.values.dims == ("fact", "site", "pos")
    for name, at in (("last", "last"), ("last_subject", "last_subject")):
        alone = logit_lens(llama, FACTS, positions=at, progress=False)  # type: ignore[arg-type]
        np.testing.assert_allclose(scores.values[:, :, GROUPS.index(name)], alone.values, atol=1e-5)
    batch = encode(llama, FACTS[3:4], answer=None)
    _, store = llama.run_with_cache(batch.tokens)
    start, stop = int(batch.subject_last) + 1, int(batch.end)
    logits = llama.bridge.unembed(llama.bridge.ln_final(store["blocks.0.hook_resid_post"]))[0]
    answer, foil = first_tokens(llama, FACTS[3:4], [contrast(FACTS[3])]).ids[0].tolist()
    expected = float((logits[start:stop, answer] - logits[start:stop, foil]).mean().detach())
    place = list(map(str, scores.sites)).index("L0.resid_post")
    assert float(scores.values[3, place, GROUPS.index("further")]) == pytest.approx(expected, abs=1e-5)
    assert bool(scores.values[:, :, GROUPS.index("middle_subject")].isnull()[0].all())


class ByHand:
    """The raw model's last residual stream at the end of one prompt, split and read without folding."""

    def __init__(self, hm: HookedModel, fact: Fact) -> None:
        tokens = encode(hm, [fact], answer=None).tokens
        _, self.store = hm.run_with_cache(tokens)
        self.hm, config, layers = hm, hm.hf.config, hm.arch.shape.n_layers
        stem = hm.hf.transformer if hasattr(hm.hf, "transformer") else hm.hf.base_model
        norm = next(getattr(stem, n) for n in ("ln_f", "final_layer_norm", "norm") if hasattr(stem, n))
        self.centred, self.eps = hasattr(norm, "bias"), getattr(norm, "eps", config_eps(config))
        ids = first_tokens(hm, [fact], [contrast(fact)]).ids[0]
        head = hm.hf.get_output_embeddings().weight[ids]
        gain = norm.weight + 1 if "Gemma" in type(norm).__name__ else norm.weight
        self.direction = gain * (head[0] - head[1])
        self.bias = float(norm.bias @ (head[0] - head[1])) if self.centred else 0.0
        self.scale = self._rms(self._centre(self.at(f"blocks.{layers - 1}.hook_resid_post")))

    def at(self, name: str) -> Tensor:
        kept: Tensor = self.store[name][0, -1]
        return kept

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def _rms(self, x: Tensor) -> Tensor:
        return (x.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def credit(self, written: Tensor) -> float:
        return float(self._centre(written) / self.scale @ self.direction)

    def _constant(self, layer: int, group: int) -> Tensor:
        """What the biases of values and of the norm before them add to z: attention's weights sum to one."""
        attention, norm = (getattr(self.hm.bridge.blocks[layer], name) for name in ("attn", "ln1"))
        shift = getattr(norm, "bias", None)
        constant = 0 if shift is None else shift @ self.hm.W_V[layer, group]
        own = attention.b_V
        return (
            constant + torch.zeros(())
            if own is None
            else constant + own.reshape(len(self.hm.W_V[layer]), -1)[group]
        )

    def head(self, layer: int, head: int) -> float:
        z = self.at(f"blocks.{layer}.attn.hook_z")[head]
        z = z - self._constant(layer, head * len(self.hm.W_V[layer]) // self.hm.arch.shape.n_heads)
        written = z @ self.hm.W_O[layer, head]
        block = self.hm.bridge.blocks[layer]
        if hasattr(block, "ln1_post"):
            whole = self.at(f"blocks.{layer}.ln1_post.hook_in")
            written = written / self._rms(whole) * (1 + block.ln1_post.weight)
        return self.credit(written)


def config_eps(config: Any) -> float:
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    return float(next(getattr(config, name) for name in names if hasattr(config, name)))


def difference(hm: HookedModel, fact: Fact, *, capped: bool = True) -> float:
    """The model's own logit difference of the first tokens at the end of the prompt."""
    tokens = encode(hm, [fact], answer=None).tokens
    logits = hm.hf(tokens).logits[0, -1].detach()
    cap = getattr(hm.hf.config, "final_logit_softcapping", None)
    if cap and not capped:
        logits = cap * torch.atanh(logits / cap)
    answer, foil = first_tokens(hm, [fact], [contrast(fact)]).ids[0]
    return float(logits[answer] - logits[foil])


@torch.no_grad()
def test_every_credit_is_what_a_hand_reads_from_the_unfolded_model(wide: HookedModel) -> None:
    whole = direct_logit_attribution(wide, FACTS, batch_size=3, progress=False)
    heads = direct_logit_attribution(wide, FACTS, sites=("head", "mlp"), batch_size=3, progress=False)
    for row, fact in enumerate(FACTS):
        hand = ByHand(wide, fact)
        for scores in (whole, heads):
            for place, site in enumerate(scores.sites):
                if site.kind == "head":
                    expected = hand.head(site.layer or 0, site.index or 0)
                elif site.kind == "embed":
                    expected = hand.credit(hand.at("blocks.0.hook_resid_pre"))
                else:
                    expected = hand.credit(hand.at(wide.arch.hooks(site)[0].name))
                # Folding is done in float32, whatever the model's precision.
                assert float(scores.values[row, place]) == pytest.approx(expected, abs=2e-6), site
        total = float(whole.values[row].sum())
        assert total == pytest.approx(difference(wide, fact, capped=False) - hand.bias, abs=2e-6)


def test_heads_of_a_family_without_output_bias_add_up_to_their_attention(llama: HookedModel) -> None:
    whole, heads = (
        by_site(direct_logit_attribution(llama, FACTS, sites=sites, progress=False))
        for sites in (("attn", "mlp"), ("head", "mlp"))
    )
    for layer in range(2):
        together = sum(value for site, value in heads.items() if site.startswith(f"L{layer}.head"))
        assert together == pytest.approx(whole[f"L{layer}.attn"], abs=1e-5)
        assert heads[f"L{layer}.mlp"] == pytest.approx(whole[f"L{layer}.mlp"], abs=1e-5)


def test_several_options_count_by_their_mean(llama: HookedModel) -> None:
    options = ("p", "a", "pi", "be")
    fact = FACTS[0].replace(foil=None, options=options)
    alone = [FACTS[0].replace(foil=word) for word in options[1:] if word != "pi"]
    read = [direct_logit_attribution(llama, [one], progress=False).values[0] for one in [fact, *alone]]
    # "pi" begins as the answer does, so it takes a third of the difference away.
    np.testing.assert_allclose(read[0], (read[1] + read[2]) / 3, atol=1e-6)


def test_the_planted_answer_is_read_at_the_end_as_soon_as_it_is_carried_there() -> None:
    hm, facts = planted_model(), planted_facts()
    scores = logit_lens(hm, facts, progress=False)
    read = by_site(scores)
    before = ("L0.resid_pre", "L0.resid_mid", "L0.resid_post", "L1.resid_mid", "L1.resid_post")
    assert all(read[site] == 0 for site in before) and read["L2.resid_mid"] > 5
    assert read["L3.resid_post"] > read["L3.resid_mid"]
    likeliest = logit_lens(hm, facts, metric="rank", progress=False)
    assert by_site(likeliest)["L2.resid_mid"] == 0
    assert scores.title == "Logit lens at the last token: logit_diff"


def test_the_planted_answer_is_looked_up_in_coordinates_that_the_lens_does_not_read() -> None:
    read = by_site(logit_lens(planted_model(), planted_facts(), positions="last_subject", progress=False))
    assert read["L1.resid_post"] == 0 and read["L2.resid_mid"] > 1


def test_direct_credit_goes_to_what_carries_and_none_to_the_lookup() -> None:
    read = by_site(direct_logit_attribution(planted_model(), planted_facts(), progress=False))
    assert read["L2.attn"] > 1 and read["L3.mlp"] > 1
    assert all(abs(value) < 1e-5 for site, value in read.items() if site not in ("L2.attn", "L3.mlp"))


def test_scores_draw_select_and_say_that_they_read_first_tokens(llama: HookedModel) -> None:
    lens = logit_lens(llama, FACTS, progress=False)
    credit = direct_logit_attribution(llama, FACTS, progress=False)
    assert lens.title == "Logit lens at the last token: logit_diff (first token)"
    assert credit.title == "Direct logit attribution: logit difference (first token)"
    for scores in (lens, credit, logit_lens(llama, FACTS, positions="groups", progress=False)):
        assert scores.heatmap().data and scores.curves().data
    assert len(credit.only("attn", "mlp").top(params=0.5)) >= 1
    with pytest.raises(ScoresError):
        lens.top(1)


def test_the_progress_bars_count_sites(llama: HookedModel, capsys: pytest.CaptureFixture[str]) -> None:
    logit_lens(llama, FACTS)
    direct_logit_attribution(llama, FACTS)
    shown = capsys.readouterr().err
    assert "20/20" in shown and shown.count("20/20") >= 2


def test_a_model_in_training_is_refused_with_a_way_out(llama: HookedModel) -> None:
    own = llama.to(torch.float64)
    own.hf.train()
    try:
        own.bridge.train()
        with pytest.raises(ModelError, match=r"TransformerLens refuses the logit lens .* Use a probe"):
            logit_lens(own, FACTS, progress=False)
    finally:
        own.hf.eval()
        own.bridge.eval()


def test_a_model_that_cannot_be_folded_is_refused_with_a_way_out(
    tokenizer: Any, llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = llama.to(torch.float64)

    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no folding here")

    monkeypatch.setattr(own, "folded", refuse)
    with pytest.raises(
        ModelError, match=r"refuses direct .*: no folding here. Use mu.attribution, which needs"
    ):
        direct_logit_attribution(own, FACTS, progress=False)


@pytest.mark.parametrize(
    ("verb", "options", "error", "message"),
    [
        (
            logit_lens,
            {"positions": "first"},
            ScoresError,
            "positions must be one of 'last', 'last_subject' or 'groups'; not",
        ),
        (logit_lens, {"metric": "loss"}, ScoresError, "metric must be one of 'logit_diff', 'logprob'"),
        (
            direct_logit_attribution,
            {"sites": "component"},
            ScoresError,
            "sites must be one of 'attn', 'mlp' or 'head'",
        ),
        (logit_lens, {"batch_size": 0}, ScoresError, "batch_size must be above zero; not 0"),
        (direct_logit_attribution, {"batch_size": 0}, ScoresError, "batch_size must be above zero; not 0"),
        (
            direct_logit_attribution,
            {"facts": [FACTS[0].replace(foil="pa")]},
            FactError,
            "'p' and 'pa' begin with the same token after 'So Bo is in', and a lens reads one token; give",
        ),
        (
            logit_lens,
            {"facts": [FACTS[0].replace(foil=None)]},
            FactError,
            "has nothing to compare its answer 'p' with; give it `foil=`, `new=` or `options=`",
        ),
    ],
)
def test_what_a_lens_cannot_read_is_an_error(
    llama: HookedModel, verb: Any, options: dict[str, Any], error: Any, message: str
) -> None:
    options = {"facts": FACTS} | options
    with unchecked(), pytest.raises(error, match=message):
        verb(llama, options.pop("facts"), progress=False, **options)
