"""Every loss written out token by token with plain floats, as the papers state it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from statistics import fmean

from mechunlearn.editing.objectives.requests import Outputs

Rows = list[list[float]]


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(z - top) for z in logits]
    return [power / sum(powers) for power in powers]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def cross_entropy(target: list[float], p: list[float]) -> float:
    return -sum(t * math.log(q) for t, q in zip(target, p, strict=True) if t)


def tokens(one: Outputs) -> list[int]:
    """The positions that have a label."""
    return [i for i, label in enumerate(one.labels.tolist()) if label >= 0]


def examples(one: Outputs) -> list[list[int]]:
    """The positions that have a label, by example."""
    found = defaultdict(list)
    for i in tokens(one):
        found[int(one.row[i])].append(i)
    return [found[row] for row in sorted(found)]


def logp(one: Outputs, i: int) -> float:
    return math.log(softmax(one.logits[i].tolist())[int(one.labels[i])])


def ratio(one: Outputs, example: list[int]) -> float:
    """log (p / p_ref) of a whole answer."""
    assert one.reference_label_logprobs is not None
    return sum(logp(one, i) - float(one.reference_label_logprobs[i]) for i in example)


def nll(one: Outputs) -> float:
    return -fmean(logp(one, i) for i in tokens(one))


def log1m_prob(one: Outputs, threshold: float = -math.inf) -> float:
    answers = [sum(logp(one, i) for i in example) for example in examples(one)]
    return fmean(math.log(1 - math.exp(log_p)) if log_p >= threshold else 0.0 for log_p in answers)


def kl(one: Outputs) -> float:
    assert one.reference_logprobs is not None
    total = []
    for i in tokens(one):
        before, now = one.reference_logprobs[i].exp().tolist(), softmax(one.logits[i].tolist())
        total.append(sum(b * math.log(b / n) for b, n in zip(before, now, strict=True)))
    return fmean(total)


def npo(one: Outputs, beta: float) -> float:
    return fmean(-2 / beta * log_sigmoid(-beta * ratio(one, example)) for example in examples(one))


def simnpo(one: Outputs, beta: float, delta: float) -> float:
    per_token = [-fmean(logp(one, i) for i in example) for example in examples(one)]
    return fmean(-2 / beta * log_sigmoid(beta * (x - delta)) for x in per_token)


def dpo(win: Outputs, lose: Outputs, beta: float) -> float:
    pairs = zip(examples(win), examples(lose), strict=True)
    return fmean(-2 / beta * log_sigmoid(beta * (ratio(win, w) - ratio(lose, l))) for w, l in pairs)  # noqa: E741


def undial(one: Outputs, beta: float) -> float:
    assert one.reference_logprobs is not None
    total = []
    for i in tokens(one):
        teacher = one.reference_logprobs[i].tolist()
        teacher[int(one.labels[i])] -= beta
        total.append(cross_entropy(softmax(teacher), softmax(one.logits[i].tolist())))
    return fmean(total)


def ceu(one: Outputs, skip: int) -> float:
    total = []
    for example in examples(one):
        for i in example[min(skip, len(example) - 1) :]:
            teacher = one.logits[i].tolist()
            teacher[int(one.labels[i])] = -math.inf
            total.append(cross_entropy(softmax(teacher), softmax(one.logits[i].tolist())))
    return fmean(total)


def weighted_ascent(one: Outputs, power: float, doubt: float) -> float:
    chances = [math.exp(logp(one, i)) for i in tokens(one)]
    return fmean(p**power * (1 - p) ** doubt * math.log(p) for p in chances)


def flatness(one: Outputs) -> float:
    rows = [one.logits[i].tolist() for i in tokens(one)]
    return fmean((max(row) - fmean(row)) ** 2 for row in rows)


def states(one: Outputs) -> tuple[Rows, Rows]:
    assert one.hidden is not None and one.reference_hidden is not None
    return one.hidden.tolist(), one.reference_hidden.tolist()


def far(a: list[float], b: list[float]) -> float:
    return fmean((x - y) ** 2 for x, y in zip(a, b, strict=True))


def by_example(one: Outputs, value: Callable[[int], float]) -> float:
    return fmean(fmean(value(i) for i in example) for example in examples(one))


def steering(one: Outputs, target: list[float]) -> float:
    now, _ = states(one)
    return by_example(one, lambda i: far(now[i], target))


def drift(one: Outputs) -> float:
    now, before = states(one)
    return by_example(one, lambda i: far(now[i], before[i]))


def alignment(one: Outputs) -> float:
    now, before = states(one)

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    return fmean(max(0.0, cosine(now[i], before[i])) for i in tokens(one))


def displacement(one: Outputs) -> float:
    now, before = states(one)
    return fmean(math.dist(now[i], before[i]) for i in tokens(one))
