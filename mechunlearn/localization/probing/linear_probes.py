"""Linear probes of the residual stream, as hooks and as directions.

1. The residual stream is read at one position of every prompt, for all layers in one pass (``states_at``).
2. A linear probe of standardised states learns to name the facts' answers: multinomial logistic regression,
   ridge regression on the answers' indicators (both scikit-learn's), or the difference of the answers' means.
3. The standardisation is folded into the probe's weights, so that it reads activations as they are: as a hook
   while the model runs, or as the direction along which a label gains, to steer along.

Several probes are fitted in parallel if `n_jobs` says so. Each fit runs on one BLAS thread, so that no bit of
the result depends on how many run at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.hooks import Hook
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import FactError, ScoresError, one_of
from mechunlearn.models.activations import Position, probe_sites, states_at
from mechunlearn.models.hooked import HookedModel

ProbeKind = Literal["logistic", "ridge", "mean_difference"]
"""How a probe is fitted; the last two are cheap, and their scores are no calibrated probabilities."""

PROBE_KINDS = ("logistic", "ridge", "mean_difference")
_X = TypeVar("_X")
_Y = TypeVar("_Y")


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear probe of one site, in the model's own coordinates (the standardisation is folded in).

    ``name`` is the hook point of the site; ``labels`` are the answers to tell apart.

    Example:
        >>> probe = LinearProbe(Site.parse("L0.resid_post"), "blocks.0.hook_resid_post", ("golf", "judo"),
        ...                     torch.eye(2), torch.zeros(2))
        >>> probe.predict(torch.tensor([[0.0, 5.0]]))
        ('judo',)
    """

    site: Site
    name: str
    labels: tuple[str, ...]
    weight: Float[Tensor, "label d_model"]
    bias: Float[Tensor, "label"]

    def logprobs(self, states: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any label"]:
        """The log-probability of every label.

        Ridge regression and a difference of means only rank labels; their scores are normalised alike.
        """
        logprobs: Tensor = (states.to(self.weight) @ self.weight.T + self.bias).log_softmax(-1)
        return logprobs

    def predict(self, states: Float[Tensor, "fact d_model"]) -> tuple[str, ...]:
        """The likeliest label of each state."""
        return tuple(self.labels[i] for i in self.logprobs(states).argmax(-1).tolist())

    def direction(self, label: str) -> Float[Tensor, "d_model"]:
        """The unit vector along which this label gains on the mean of all; for `hooks.steer`.

        ScoresError is raised if there is no such label.
        """
        if label not in self.labels:
            raise ScoresError(one_of("label", label, self.labels))
        difference = self.weight[self.labels.index(label)] - self.weight.mean(0)
        direction: Tensor = difference / difference.norm()
        return direction

    def hook(self, store: MutableMapping[str, Tensor]) -> Hook:
        """A hook that stores log-probabilities [batch pos label] under ``store[str(site)]`` in a run."""

        def read(activation: Tensor, hook: Any = None) -> None:
            store[str(self.site)] = self.logprobs(activation.detach())

        return Hook(self.name, read)


def fit_probes(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    positions: Position = "last_subject",
    sites: Sequence[Site] | None = None,
    kind: ProbeKind = "logistic",
    C: float | int = 1.0,
    batch_size: int = 64,
    n_jobs: int | None = None,
) -> dict[Site, LinearProbe]:
    """Fit one probe per site on all facts, to use it as a hook or a direction.

    Args:
        hm: the model.
        facts: the facts to fit on.
        positions: the position to read: the ``"last_subject"`` or the ``"last"`` token.
        sites: residual-stream sites; None for all that `probe` scores.
        kind: ``"logistic"`` regression, ``"ridge"`` regression, or ``"mean_difference"``, which assigns a
            state to the answer with the nearest mean.
        C: inverse strength of the regularisation, as in scikit-learn (ridge has ``alpha = 1 / (2 C)``); a
            difference of means has none.
        batch_size: prompts per forward pass.
        n_jobs: sites fitted at a time, as in scikit-learn; None for one, -1 for one per core.

    Raises:
        FactError: there are fewer than two answers.
        ScoresError: for unknown `positions` or `kind`, or a `C` or `batch_size` that is not above 0.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> probes = mu.fit_probes(hm, facts.forget, sites=[mu.Site.parse("L0.resid_post")])
    """
    check_kind(kind, C)
    labels = np.array([fact.answer.strip() for fact in facts])
    require_two("answers", labels.tolist())
    chosen = probe_sites(hm) if sites is None else list(sites)
    states = states_at(hm, facts, chosen, positions=positions, batch_size=batch_size).numpy()
    fits = in_parallel(lambda x: fit_linear(x, labels, C, kind=kind).folded(), states, n_jobs=n_jobs)
    probes = {}
    for site, (weight, bias, names) in zip(chosen, fits, strict=True):
        probes[site] = LinearProbe(site, hm.arch.hooks(site)[0].name, names, weight, bias)
    return probes


def check_kind(kind: str, C: float | int) -> None:
    """Raise ScoresError for an unknown kind of probe, or a `C` that is not above 0."""
    if kind not in PROBE_KINDS:
        raise ScoresError(one_of("kind", kind, PROBE_KINDS))
    if not C > 0:
        raise ScoresError(f"C must be above 0 (larger values regularise less); not {C}")


def require_two(what: str, values: Sequence[str]) -> None:
    """Raise FactError if these values are all the same; ``what`` is their name in the message."""
    if len(set(values)) < 2:
        raise FactError(
            f"a probe tells answers apart, but what it is fitted on has {len(set(values))} different {what}; "
            "give facts with at least two"
        )


def in_parallel(fit: Callable[[_X], _Y], data: Iterable[_X], *, n_jobs: int | None) -> Iterator[_Y]:
    """Fit several probes at a time, each on one BLAS thread, and give them in order.

    ``n_jobs`` is as in scikit-learn. Fits run in threads, which share memory: states are not copied, and no
    process has to import anything.

    Example:
        >>> list(in_parallel(abs, [-1, -2], n_jobs=2))
        [1, 2]
    """
    from sklearn.utils.parallel import Parallel, delayed
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1, user_api="blas"):
        run = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")
        yield from run(delayed(fit)(one) for one in data)


def fit_linear(
    x: Float[np.ndarray, "fact d_model"], labels: Any, C: float | int, *, kind: ProbeKind = "logistic"
) -> Fitted:
    """Fit a linear probe on standardised states, as `fit_probes` does; at least two labels must be different.

    Example:
        >>> x = np.array([[0.0, 1.0], [0.0, 2.0], [9.0, 1.0]])
        >>> fit_linear(x, ["near", "near", "far"], 1.0).predict(np.array([[8.0, 1.5]])).tolist()
        ['far']
    """
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    model: Any = _Means()
    if kind == "logistic":
        model = LogisticRegression(C=C, max_iter=2000)
    elif kind == "ridge":
        model = RidgeClassifier(alpha=1 / (2 * C))
    scaler = StandardScaler()
    return Fitted(scaler, model.fit(scaler.fit_transform(x), labels))


class Fitted(NamedTuple):
    """A fitted classifier and the standardisation of its inputs, both scikit-learn's."""

    scaler: Any
    classifier: Any

    def predict(self, x: Float[np.ndarray, "fact d_model"]) -> Any:
        """The likeliest label of each state."""
        return self.classifier.predict(self.scaler.transform(x))

    def folded(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Weights, biases and labels in the model's own coordinates, one row per label."""
        weight = np.atleast_2d(self.classifier.coef_) / self.scaler.scale_
        bias = np.atleast_1d(self.classifier.intercept_) - weight @ self.scaler.mean_
        # For two labels scikit-learn has one row: the score of the second, where the first has 0.
        if len(weight) == 1:
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        return torch.tensor(weight), torch.tensor(bias), tuple(map(str, self.classifier.classes_))


class _Means:
    """The answer with the nearest mean, as a linear classifier with scikit-learn's names.

    ``NearestCentroid`` assigns alike, but refuses states that are all equal, which a site may well have.
    """

    def fit(self, x: Float[np.ndarray, "fact d_model"], labels: Any) -> _Means:
        self.classes_ = np.unique(labels)
        self.coef_ = np.stack([x[labels == label].mean(0) for label in self.classes_])
        # |x - mean|² = |x|² - 2 (x · mean - |mean|² / 2), of which only the bracket tells answers apart.
        self.intercept_ = -(self.coef_**2).sum(1) / 2
        return self

    def predict(self, x: Float[np.ndarray, "fact d_model"]) -> Any:
        return self.classes_[(x @ self.coef_.T + self.intercept_).argmax(1)]
