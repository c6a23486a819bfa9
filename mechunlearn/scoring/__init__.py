"""What a model says to facts: whole answers, options, running text."""

from mechunlearn.scoring.passes import Runs as Runs
from mechunlearn.scoring.passes import forward as forward
from mechunlearn.scoring.scorer import Dropped as Dropped
from mechunlearn.scoring.scorer import Outcome as Outcome
from mechunlearn.scoring.scorer import Prepared as Prepared
from mechunlearn.scoring.scorer import Validation as Validation
from mechunlearn.scoring.scorer import answer_logprobs as answer_logprobs
from mechunlearn.scoring.scorer import option_logprobs as option_logprobs
from mechunlearn.scoring.scorer import perplexity as perplexity
from mechunlearn.scoring.scorer import prepare as prepare
from mechunlearn.scoring.scorer import score as score
from mechunlearn.scoring.scorer import validate as validate

__all__ = [
    "Dropped",
    "Outcome",
    "Prepared",
    "Runs",
    "Validation",
    "answer_logprobs",
    "forward",
    "option_logprobs",
    "perplexity",
    "prepare",
    "score",
    "validate",
]
