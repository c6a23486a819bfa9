"""Linear readers of the residual stream, as hooks and as directions.

1. One forward pass per batch of prompts keeps the residual stream at one position, for all layers: the
   embedding (``L0.resid_pre``), and every layer's ``resid_mid`` and ``resid_post``.
2. A multinomial logistic regression on standardised states (scikit-learn) learns to name the facts' answers.
3. Its standardisation is folded into its weights, so that it reads activations as they are: as a hook while
   the model runs, or as the direction along which a label gains, to steer along.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.encoding import encode
from mechunlearn.errors import FactError, ScoresError, SiteError, one_of
from mechunlearn.facts.fact import Fact
from mechunlearn.hooks import Hook
from mechunlearn.model import HookedModel
from mechunlearn.sites import Site

Position = Literal["last subject", "last"]


@dataclass(frozen=True, eq=False)
class LayerProbe:
    """A linear reader of one site, in the model's own coordinates (the standardisation is folded in).

    Args:
        site: the state it reads.
        name: the hook point of that state.
        labels: the answers it tells apart.
        weight: one row per label.
        bias: one number per label.

    Example:
        >>> reader = LayerProbe(Site.parse("L0.resid_post"), "blocks.0.hook_resid_post", ("golf", "judo"),
        ...                     torch.eye(2), torch.zeros(2))
        >>> reader.predict(torch.tensor([[0.0, 5.0]]))
        ('judo',)
    """

    site: Site
    name: str
    labels: tuple[str, ...]
    weight: Float[Tensor, "label d_model"]
    bias: Float[Tensor, "label"]

    def logprobs(self, states: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any label"]:
        """Read states: the log-probability of every label."""
        read: Tensor = (states.to(self.weight) @ self.weight.T + self.bias).log_softmax(-1)
        return read

    def predict(self, states: Float[Tensor, "fact d_model"]) -> tuple[str, ...]:
        """Name the likeliest label of each state."""
        return tuple(self.labels[i] for i in self.logprobs(states).argmax(-1).tolist())

    def direction(self, label: str) -> Float[Tensor, "d_model"]:
        """The unit vector along which this label gains on the mean of all; for `hooks.steer`.

        Raises:
            ScoresError: there is no such label.
        """
        if label not in self.labels:
            raise ScoresError(one_of("label", label, self.labels))
        away = self.weight[self.labels.index(label)] - self.weight.mean(0)
        direction: Tensor = away / away.norm()
        return direction

    def hook(self, store: MutableMapping[str, Tensor]) -> Hook:
        """Read while the model runs: log-probabilities [batch pos label] land in ``store[str(site)]``."""

        def read(activation: Tensor, hook: Any = None) -> None:
            store[str(self.site)] = self.logprobs(activation.detach())

        return Hook(self.name, read)


def fit_probes(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    at: Position = "last subject",
    sites: Sequence[Site] | None = None,
    C: float = 1.0,
    batch_size: int = 64,
) -> dict[Site, LayerProbe]:
    """Fit one reader per site on all facts, to use it as a hook or a direction.

    Args:
        hm: the model.
        facts: what to fit on.
        at: where to read.
        sites: residual-stream sites; None for all that `probe` scores.
        C: inverse strength of the regularisation, as in scikit-learn.
        batch_size: prompts per forward pass.

    Raises:
        FactError: there are fewer than two answers.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> readers = mu.readers.fit_probes(hm, facts.forget, sites=[mu.Site.parse("L0.resid_post")])
    """
    chosen = probe_sites(hm) if sites is None else list(sites)
    states = states_at(hm, facts, chosen, at=at, batch_size=batch_size)
    labels = np.array([fact.answer.strip() for fact in facts])
    require_two("answers", labels.tolist())
    fitted = {}
    for site, x in zip(chosen, states, strict=True):
        weight, bias, names = _folded(fit_linear(x.numpy(), labels, C))
        fitted[site] = LayerProbe(site, hm.arch.hooks(site)[0].name, names, weight, bias)
    return fitted


def probe_sites(hm: HookedModel) -> list[Site]:
    """The sites to read: the embedding, then every layer's ``resid_mid`` and ``resid_post``.

    Families that run attention and MLP in parallel (GPT-NeoX) have no ``resid_mid``.
    """
    layers = range(hm.arch.shape.n_layers)
    after = [Site(kind, layer) for layer in layers for kind in ("resid_mid", "resid_post")]
    return [Site("resid_pre", 0), *(site for site in after if site.kind != "resid_mid" or has_mid(hm))]


def has_mid(hm: HookedModel) -> bool:
    """Whether there is a residual stream between attention and MLP."""
    try:
        return bool(hm.arch.hooks(Site("resid_mid", 0)))
    except SiteError:
        return False


def states_at(
    hm: HookedModel,
    facts: Sequence[Fact],
    sites: Sequence[Site],
    *,
    at: Position = "last subject",
    batch_size: int = 64,
) -> Float[Tensor, "site fact d_model"]:
    """Read the residual stream of every prompt at one position, in one pass for all sites.

    Args:
        hm: the model.
        facts: their prompts are run, without an answer.
        sites: residual-stream sites.
        at: ``"last subject"`` token or ``"last"`` token of the prompt.
        batch_size: prompts per forward pass.

    Returns:
        In float64 on the CPU.

    Raises:
        ScoresError: for an unknown `at`.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> mu.readers.states_at(hm, facts, [mu.Site.parse("L0.resid_post")]).shape[:2]
        torch.Size([1, 32])
    """
    if at not in ("last subject", "last"):
        raise ScoresError(one_of("at", at, ["last subject", "last"]))
    names = [hm.arch.hooks(site)[0].name for site in sites]
    batch, parts = encode(hm, facts, answer=None), []
    for start in range(0, len(batch), batch_size):
        part, store = batch.rows(slice(start, start + batch_size)).trimmed(), dict[str, Tensor]()
        where = part.subject_last if at == "last subject" else part.end
        with torch.no_grad():
            hm.run_with_hooks(
                part.tokens,
                attention_mask=part.mask,
                fwd_hooks=[_reader(name, where, store) for name in names],
            )
        parts.append(torch.stack([store[name] for name in names]))
    return torch.cat(parts, dim=1)


def _reader(name: str, where: Int[Tensor, "batch"], store: dict[str, Tensor]) -> Hook:
    """Keep one position only: whole caches of large models do not fit in memory."""

    def read(activation: Tensor, hook: Any = None) -> None:
        rows = torch.arange(len(where), device=activation.device)
        store[name] = activation.detach()[rows, where.to(activation.device)].cpu().double()

    return Hook(name, read)


def require_two(what: str, values: Sequence[str]) -> None:
    """Refuse facts that leave a reader nothing to tell apart."""
    if len(set(values)) < 2:
        raise FactError(
            f"a probe tells answers apart, but what it is fitted on has {len(set(values))} different {what}; "
            "give facts with at least two"
        )


def fit_linear(x: Float[np.ndarray, "fact d_model"], labels: Any, C: float) -> Any:
    """Fit a multinomial logistic regression on standardised states."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000)).fit(x, labels)


def _folded(fitted: Any) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Weights and biases in the model's own coordinates, one row per label also where there are two."""
    scaler, regression = fitted[0], fitted[1]
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    if len(weight) == 1:
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return torch.tensor(weight), torch.tensor(bias), tuple(map(str, regression.classes_))
