"""The loss functions beneath the objectives: pure functions of logits and labels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn import metrics
from mechunlearn.objectives.reading import Reading


def token_logprobs(reading: Reading) -> Float[Tensor, " token"]:
    """Log-probability of every label.

    Args:
        reading: logits and labels.
    """
    return metrics.token_logprobs(reading.logits, reading.labels)


def answer_logprobs(reading: Reading) -> Float[Tensor, " row"]:
    """Log-probability of every example's whole answer: the sum over its tokens.

    Args:
        reading: logits, labels and the example each position belongs to.
    """
    return _per_row(reading, token_logprobs(reading))


def nll(reading: Reading) -> Float[Tensor, ""]:
    """Mean negative log-likelihood per token.

    Args:
        reading: logits and labels.
    """
    return -token_logprobs(reading).mean()


def log1m_prob(reading: Reading) -> Float[Tensor, ""]:
    """Mean of ``log(1 - p)``, with p the probability of a whole answer; at most 0.

    Every digit of ``1 - p`` is kept as p nears 1, where a softmax would round it to 0: log p is the log
    sigmoid of the label's logit above the log-sum-exp of all others, and ``1 - p`` is ``-expm1(log p)``.
    So a model that is certain of an answer still gets a gradient, and one of ordinary size (the
    derivative by the label's logit is -p for an answer of one token).

    Args:
        reading: logits, labels and the example each position belongs to.

    Example:
        >>> one = torch.zeros(1, dtype=torch.long)
        >>> round(float(log1m_prob(Reading(logits=torch.zeros(1, 2), labels=one, row=one)).exp()), 6)
        0.5
    """
    logits = reading.logits.to(torch.promote_types(reading.logits.dtype, torch.float32))
    labels = reading.labels[:, None]
    others = logits.scatter(-1, labels, -torch.inf).logsumexp(-1)
    margin = logits.gather(-1, labels)[:, 0] - others
    log_p = _per_row(reading, torch.nn.functional.logsigmoid(margin))
    return torch.log(-torch.expm1(log_p.clamp(max=-torch.finfo(log_p.dtype).tiny))).mean()


def _per_row(reading: Reading, per_token: Float[Tensor, " token"]) -> Float[Tensor, " row"]:
    """The sum over the tokens of each example."""
    rows = int(reading.row.max()) + 1
    return per_token.new_zeros(rows).index_add(0, reading.row, per_token)
