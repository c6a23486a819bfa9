"""The loss functions on logits beneath the objectives: pure functions of what was read.

1. Each takes a :class:`Outputs` and gives one number, to be minimised, unless its name says otherwise.
2. Positions without a label are dropped; half precision is read in float32 (see ``rows``).
3. Means are over tokens, or over examples where the loss is a function of a whole answer.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, pad

from mechunlearn.core import metrics
from mechunlearn.editing.objectives.requests import Outputs
from mechunlearn.editing.objectives.rows import asked, by_row, given, places, row_means, row_sums, wide
from mechunlearn.models.encoding.batch import IGNORED


def token_logprobs(output: Outputs) -> Float[Tensor, " token"]:
    """Log-probability of every label, 0 where there is none.

    Args:
        output: logits and labels.
    """
    # One fused kernel each way: over all positions this is a tenth of a step.
    logits = wide(output.logits)
    return -cross_entropy(logits, output.labels, reduction="none", ignore_index=IGNORED)


def answer_logprobs(output: Outputs) -> Float[Tensor, " row"]:
    """Log-probability of every example's whole answer: the sum over its tokens.

    Args:
        output: logits, labels and the example each position belongs to.
    """
    return row_sums(token_logprobs(output), output.row)


def nll(output: Outputs) -> Float[Tensor, ""]:
    """Mean negative log-likelihood per token.

    Args:
        output: logits and labels.
    """
    return -token_logprobs(asked(output)).mean()


def log1m_prob(output: Outputs, *, threshold: float | int | None = None) -> Float[Tensor, ""]:
    """Mean of ``log(1 - p)``, with p the probability of a whole answer; at most 0.

    Every digit of ``1 - p`` is kept as p nears 1, where a softmax would round it to 0: of one token, log p is
    the log sigmoid of its logit's margin above the log-sum-exp of all others, and ``log(1 - p)`` that of
    minus the margin. An answer fails at its first token, or at its second after the first, and so on:
    ``1 - p`` is the sum of these. So a model that is certain of an answer still gets a gradient, and one of
    ordinary size (the derivative by the label's logit is -p for an answer of one token).

    Args:
        output: logits, labels and the example each position belongs to.
        threshold: answers whose log p is below it count as 0, and still count in the mean.

    Example:
        >>> from mechunlearn.editing.objectives.losses import log1m_prob
        >>> one = torch.zeros(1, dtype=torch.long)
        >>> output = mu.objectives.Outputs(logits=torch.zeros(1, 2), labels=one, row=one)
        >>> round(float(log1m_prob(output).exp()), 6)
        0.5
    """
    output = asked(output)
    logits, labels = wide(output.logits), output.labels[:, None]
    others = logits.scatter(-1, labels, -torch.inf).logsumexp(-1)
    margin = logits.gather(-1, labels)[:, 0] - others
    succeeds = by_row(logsigmoid(margin), output.row)
    fails = by_row(logsigmoid(-margin), output.row, fill=-torch.inf)
    so_far = pad(succeeds.cumsum(-1)[:, :-1], (1, 0))
    log1m = (so_far + fails).logsumexp(-1)
    if threshold is not None:
        log1m = log1m.where(succeeds.sum(-1) >= threshold, 0.0)
    return log1m.mean()


def kl(output: Outputs) -> Float[Tensor, ""]:
    """Mean divergence KL(p_ref || p) of the model from the unedited one, over the positions read, in nats.

    Args:
        output: logits and the unedited model's log-probabilities.
    """
    output = asked(output)
    before = given(output.reference_logprobs, "the unedited model's log-probabilities", _ALL)
    return metrics.kl(before, output.logits).mean()


def npo(output: Outputs, *, beta: float | int) -> Float[Tensor, ""]:
    """Negative preference: ``-(2 / beta) log sigmoid(-beta log(p / p_ref))`` of whole answers, averaged.

    Exactly ``(2 / beta) log 2`` where the model is the unedited one; its gradient tends to that of
    ``log p`` (ascent on the loss of the answer) as beta tends to 0.

    Args:
        output: logits, labels, examples, and the unedited model's log-probabilities of the labels.
        beta: how soon an answer that became less likely counts as forgotten.
    """
    return -2 / beta * logsigmoid(-beta * log_ratios(output)).mean()


def simnpo(output: Outputs, *, beta: float | int, delta: float | int) -> Float[Tensor, ""]:
    """NPO without a reference: ``-(2 / beta) log sigmoid(beta (nll - delta))``, nll per token of an answer.

    Args:
        output: logits, labels and examples.
        beta: how soon an improbable answer counts as forgotten.
        delta: the mean negative log-likelihood per token that is aimed beyond, in nats.
    """
    output = asked(output)
    per_answer = row_means(-token_logprobs(output), output.row)
    return -2 / beta * logsigmoid(beta * (per_answer - delta)).mean()


def dpo(win: Outputs, lose: Outputs, *, beta: float | int) -> Float[Tensor, ""]:
    """Preference of one answer to another: ``-(2 / beta) log sigmoid(beta (win - lose))`` of log-ratios.

    Args:
        win: the answer to be preferred.
        lose: the answer to be given up, for the same questions.
        beta: how soon the preference counts as learned.
    """
    return -2 / beta * logsigmoid(beta * (log_ratios(win) - log_ratios(lose))).mean()


def log_ratios(output: Outputs) -> Float[Tensor, " row"]:
    """``log(p / p_ref)`` of every example's whole answer.

    Args:
        output: logits, labels, examples, and the unedited model's log-probabilities of the labels.
    """
    output = asked(output)
    before = given(output.reference_label_logprobs, "the unedited model's log-probabilities", _LABEL)
    return row_sums(token_logprobs(output) - before, output.row)


def undial(output: Outputs, *, beta: float | int) -> Float[Tensor, ""]:
    """Cross-entropy to the unedited model with the true token's logit lowered, over labelled tokens.

    Args:
        output: logits, labels and the unedited model's log-probabilities.
        beta: by how much the logit is lowered.
    """
    output = asked(output)
    teacher = wide(given(output.reference_logprobs, "the unedited model's log-probabilities", _ALL))
    label = output.labels[:, None]
    lowered = teacher.scatter(-1, label, teacher.gather(-1, label) - beta)
    return _cross_entropy(lowered, output).mean()


def ceu(output: Outputs, *, skip: int) -> Float[Tensor, ""]:
    """Cross-entropy to the model's own distribution without the true token, over labelled tokens.

    Args:
        output: logits, labels and examples.
        skip: so many first tokens of an answer are left alone, but never its last.
    """
    output = asked(output)
    teacher = wide(output.logits.detach()).scatter(-1, output.labels[:, None], -torch.inf)
    per_token = _cross_entropy(teacher, output)
    if not skip:
        return per_token.mean()
    line, column = places(output.row)
    trained = (column >= skip) | (column == line.bincount()[line] - 1)
    return per_token[trained].mean()


def weighted_ascent(output: Outputs, *, power: float | int, doubt: float | int = 0.0) -> Float[Tensor, ""]:
    """Mean of ``p^power (1 - p)^doubt log p`` over tokens, the weights without gradient.

    Args:
        output: logits and labels.
        power: of p: the greater, the less is done to tokens that are already improbable.
        doubt: of 1 - p: the greater, the less is done to tokens that are certain.
    """
    log_p = token_logprobs(asked(output))
    fixed = log_p.detach()
    weight = (power * fixed).exp() * (-torch.expm1(fixed)) ** doubt
    # Where the weight is 0 so is the term, also if log p is minus infinity.
    return torch.where(weight > 0, weight * log_p, 0.0).mean()


def flatness(output: Outputs) -> Float[Tensor, ""]:
    """Mean of ``(max_v z_v - mean_v z_v)^2`` over tokens: 0 where all logits are alike.

    Args:
        output: logits and labels.
    """
    logits = wide(asked(output).logits)
    return (logits.amax(-1) - logits.mean(-1)).square().mean()


_ALL, _LABEL = "reference='logprobs'", "reference='label_logprobs'"


def _cross_entropy(teacher: Float[Tensor, "token d_vocab"], output: Outputs) -> Float[Tensor, " token"]:
    """``-sum_v t_v log p_v``, with t the softmax of the teacher's logits; what t rules out counts 0."""
    t, log_p = teacher.softmax(-1), wide(output.logits).log_softmax(-1)
    return -torch.where(t > 0, t * log_p, 0.0).sum(-1)
