"""The losses on logits that the objectives are made of: pure functions of the model's outputs.

1. Each takes an :class:`Outputs` and returns one number to minimise, unless its docstring says otherwise.
   All read ``logits`` and ``labels``; losses of a whole answer also read ``row``.
2. Positions without a label are dropped; half precision is converted to float32 (see ``rows``).
3. Means are over tokens, or over examples where the loss is a function of a whole answer.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, pad

from mechunlearn.core import metrics
from mechunlearn.editing.objectives.requests import Outputs
from mechunlearn.editing.objectives.rows import (
    by_row,
    labeled,
    places,
    required,
    row_means,
    row_sums,
    upcast,
)
from mechunlearn.models.encoding.batch import IGNORED


def token_logprobs(output: Outputs) -> Float[Tensor, " token"]:
    """The log-probability of every label, from ``logits`` and ``labels``; 0 where there is no label."""
    # One fused kernel for forward and one for backward; over all positions this is a tenth of a step.
    logits = upcast(output.logits)
    return -cross_entropy(logits, output.labels, reduction="none", ignore_index=IGNORED)


def answer_logprobs(output: Outputs) -> Float[Tensor, " row"]:
    """The log-probability of each example's whole answer: the sum over its tokens (``row`` groups them)."""
    return row_sums(token_logprobs(output), output.row)


def nll(output: Outputs) -> Float[Tensor, ""]:
    """The mean negative log-likelihood per token, from ``logits`` and ``labels``."""
    return -token_logprobs(labeled(output)).mean()


def log1m_prob(output: Outputs, *, threshold: float | int | None = None) -> Float[Tensor, ""]:
    """The mean of ``log(1 - p)`` over examples, where p is the probability of a whole answer; at most 0.

    It stays exact as p approaches 1, where a softmax would round ``1 - p`` to 0. For one token, log p is the
    log-sigmoid of the margin of its logit over the log-sum-exp of all others, and ``log(1 - p)`` is the
    log-sigmoid of minus that margin. A longer answer fails at its first token, or at its second after a
    correct first, and so on: ``1 - p`` is the sum of these probabilities. So even a model that is certain of
    an answer receives a gradient of ordinary size (for one token, -p with respect to the label's logit).

    Args:
        output: logits, labels and the example that each position belongs to.
        threshold: answers with a log p below it count as 0, and still count in the mean; None for no limit.

    Example:
        >>> from mechunlearn.editing.objectives.losses import log1m_prob
        >>> one = torch.zeros(1, dtype=torch.long)
        >>> output = mu.objectives.Outputs(logits=torch.zeros(1, 2), labels=one, row=one)
        >>> round(float(log1m_prob(output).exp()), 6)
        0.5
    """
    output = labeled(output)
    logits, labels = upcast(output.logits), output.labels[:, None]
    others = logits.scatter(-1, labels, -torch.inf).logsumexp(-1)
    margin = logits.gather(-1, labels)[:, 0] - others
    # Padding is a token that is certain: log p = 0 and log(1 - p) = -inf add nothing to either sum.
    log_p = by_row(logsigmoid(margin), output.row)
    log_fail = by_row(logsigmoid(-margin), output.row, fill=-torch.inf)
    log_p_before = pad(log_p.cumsum(-1)[:, :-1], (1, 0))
    log1m = (log_p_before + log_fail).logsumexp(-1)
    if threshold is not None:
        log1m = log1m.where(log_p.sum(-1) >= threshold, 0.0)
    return log1m.mean()


def kl(output: Outputs) -> Float[Tensor, ""]:
    """The mean over positions of KL(p_ref || p) in nats, with p_ref from ``reference_logprobs``."""
    output = labeled(output)
    reference = required(output.reference_logprobs, "the unedited model's log-probabilities", _ALL)
    return metrics.kl(reference, output.logits).mean()


def npo(output: Outputs, *, beta: float | int) -> Float[Tensor, ""]:
    """Negative preference: ``-(2 / beta) log sigmoid(-beta log(p / p_ref))`` of whole answers, averaged.

    It equals ``(2 / beta) log 2`` where the model is the unedited one; as beta approaches 0 its gradient
    approaches that of ``log p`` (ascent on the loss of the answer).

    Args:
        output: logits, labels, examples, and the unedited model's log-probabilities of the labels.
        beta: inverse temperature; the larger, the sooner an answer that became less likely is left alone.
    """
    return -2 / beta * logsigmoid(-beta * log_ratios(output)).mean()


def simnpo(output: Outputs, *, beta: float | int, delta: float | int) -> Float[Tensor, ""]:
    """NPO without a reference: ``-(2 / beta) log sigmoid(beta (nll - delta))``, nll per token of an answer.

    Args:
        output: logits, labels and examples.
        beta: inverse temperature; the larger, the sooner an improbable answer is left alone.
        delta: target of the mean negative log-likelihood per token, in nats.
    """
    output = labeled(output)
    per_answer = row_means(-token_logprobs(output), output.row)
    return -2 / beta * logsigmoid(beta * (per_answer - delta)).mean()


def dpo(win: Outputs, lose: Outputs, *, beta: float | int) -> Float[Tensor, ""]:
    """Preference of one answer over another: ``-(2 / beta) log sigmoid(beta (win - lose))`` of log-ratios.

    Args:
        win: outputs for the preferred answer.
        lose: outputs for the rejected answer, to the same questions in the same order.
        beta: inverse temperature; the larger, the sooner a learned preference is left alone.
    """
    return -2 / beta * logsigmoid(beta * (log_ratios(win) - log_ratios(lose))).mean()


def log_ratios(output: Outputs) -> Float[Tensor, " row"]:
    """``log(p / p_ref)`` of each example's whole answer; needs ``reference_label_logprobs``."""
    output = labeled(output)
    reference = required(output.reference_label_logprobs, "the unedited model's log-probabilities", _LABEL)
    return row_sums(token_logprobs(output) - reference, output.row)


def undial(output: Outputs, *, beta: float | int) -> Float[Tensor, ""]:
    """Cross-entropy with the unedited model after the true token's logit is lowered, averaged over tokens.

    Args:
        output: logits, labels and the unedited model's log-probabilities.
        beta: how much the logit is lowered.
    """
    output = labeled(output)
    teacher = upcast(required(output.reference_logprobs, "the unedited model's log-probabilities", _ALL))
    label = output.labels[:, None]
    lowered = teacher.scatter(-1, label, teacher.gather(-1, label) - beta)
    return _cross_entropy(lowered, output).mean()


def ceu(output: Outputs, *, skip: int) -> Float[Tensor, ""]:
    """Cross-entropy with the model's own distribution without the true token, averaged over tokens.

    Args:
        output: logits, labels and examples.
        skip: number of first tokens of each answer that are not trained; its last token always is.
    """
    output = labeled(output)
    teacher = upcast(output.logits.detach()).scatter(-1, output.labels[:, None], -torch.inf)
    per_token = _cross_entropy(teacher, output)
    if not skip:
        return per_token.mean()
    line, column = places(output.row)
    trained = (column >= skip) | (column == line.bincount()[line] - 1)
    return per_token[trained].mean()


def weighted_ascent(output: Outputs, *, power: float | int, doubt: float | int = 0.0) -> Float[Tensor, ""]:
    """The mean of ``p^power (1 - p)^doubt log p`` over tokens; the weights carry no gradient.

    Args:
        output: logits and labels.
        power: exponent of p; the larger, the less is done to tokens that are already improbable.
        doubt: exponent of 1 - p; the larger, the less is done to tokens that are certain.
    """
    log_p = token_logprobs(labeled(output))
    constant = log_p.detach()
    weight = (power * constant).exp() * (-torch.expm1(constant)) ** doubt
    # A weight of 0 gives 0 also where log p is minus infinity; the product would be nan.
    return torch.where(weight > 0, weight * log_p, 0.0).mean()


def flatness(output: Outputs) -> Float[Tensor, ""]:
    """The mean of ``(max_v z_v - mean_v z_v)^2`` over tokens with logits z; 0 where all logits are equal."""
    logits = upcast(labeled(output).logits)
    return (logits.amax(-1) - logits.mean(-1)).square().mean()


_ALL, _LABEL = "reference='logprobs'", "reference='label_logprobs'"


def _cross_entropy(teacher: Float[Tensor, "token d_vocab"], output: Outputs) -> Float[Tensor, " token"]:
    """``-sum_v t_v log p_v`` with t the softmax of the teacher's logits; tokens with ``t_v = 0`` add 0."""
    t, log_p = teacher.softmax(-1), upcast(output.logits).log_softmax(-1)
    # Not 0 * log p, which is nan where the model's own logit is minus infinity.
    return -torch.where(t > 0, t * log_p, 0.0).sum(-1)
