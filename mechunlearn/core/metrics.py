"""Pure functions of logits.

1. ``labels[..., t]`` is the target of ``logits[..., t]``, and -100 where there is none, as in a ``Batch``.
2. Half-precision logits are cast to float32: a sum of log-probabilities in bfloat16 has two digits.
3. Answers are scored whole: their log-probability is the sum over their tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_logprobs(
    logits: Float[Tensor, "*batch pos d_vocab"], labels: Int[Tensor, "*batch pos"]
) -> Float[Tensor, "*batch pos"]:
    """Return the log-probability of every target token, in nats, 0 where there is none."""
    logits = _full_precision(logits)
    # gather needs valid indices: -100 reads token 0, and the mask below drops it.
    picked = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (picked - logits.logsumexp(-1)).masked_fill(labels < 0, 0.0)


def answer_logprob(
    logits: Float[Tensor, "*batch pos d_vocab"], labels: Int[Tensor, "*batch pos"]
) -> Float[Tensor, "*batch"]:
    """Return the log-probability of each whole answer, in nats."""
    return token_logprobs(logits, labels).sum(-1)


def kl(
    logits: Float[Tensor, "*batch d_vocab"], reference: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """Return the divergence KL(p || q) in nats, p from `logits` and q from `reference`."""
    p, q = _full_precision(logits).log_softmax(-1), _full_precision(reference).log_softmax(-1)
    # Where p is 0 the term is 0, even if both logits are -inf and their difference is NaN.
    return torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1)


def rank(logits: Float[Tensor, "*batch d_vocab"], ids: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """Count the tokens with a higher logit: 0 is the likeliest token."""
    return (logits > logits.gather(-1, ids[..., None])).sum(-1)


def _full_precision(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
