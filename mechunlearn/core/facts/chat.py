"""Facts as chat models read them: every prompt rendered by the tokenizer's own template.

1. A prompt becomes the user's message, after a system message if there is one; the template adds what opens
   the assistant's answer.
2. A probe tells what the template puts around the message and between prompt and answer: a conversation with
   two marker words as message and answer is rendered and split at them. What stands before the message is the
   fact's ``opening``, the white space before the answer its ``join``, what ends the answer its ``end``.
3. All phrasings, the multiple-choice prompt and the related facts are rendered alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError

_MESSAGE, _ANSWER = "QZMESSAGEZQ", "QZANSWERZQ"


@dataclass(frozen=True)
class ChatTemplate:
    """What a template puts around a message and its answer.

    Args:
        opening: text before the message, system message included.
        closing: text from the message to where the answer begins, as the template writes a prompt.
        join: the white space before the answer.
        end: text that ends the answer's turn.
    """

    opening: str
    closing: str
    join: str
    end: str

    @classmethod
    def of(cls, tokenizer: Any, *, system: str | None = None, **options: Any) -> ChatTemplate:
        """Find out what a tokenizer's template does; FactError if it has none, or does something else."""
        if getattr(tokenizer, "chat_template", None) is None:
            raise FactError("the tokenizer has no chat template; load one, or use the facts as they are")
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": _MESSAGE})
        conversation = [*messages, {"role": "assistant", "content": _ANSWER}]
        prompt = _rendered(tokenizer, messages, add_generation_prompt=True, **options)
        rendered = _rendered(tokenizer, conversation, **options)
        if (
            prompt.count(_MESSAGE) != 1
            or not rendered.startswith(prompt.rstrip())
            or rendered.count(_ANSWER) != 1
        ):
            raise FactError(
                "the chat template changes messages or prompts, so prompt and answer cannot be told apart; "
                "render the prompts yourself, with Fact(opening=..., join=...)"
            )
        if system is not None and system.strip() not in prompt:
            raise FactError("the chat template leaves the system message out; leave system= out as well")
        opening, closing = prompt.split(_MESSAGE)
        between, end = rendered[len(prompt.rstrip()) :].split(_ANSWER)
        # A template may write the white space before an answer in the prompt already, or with the answer.
        written = prompt[len(prompt.rstrip()) :]
        if between.strip() or not between.startswith(written):
            raise FactError(
                f"the chat template puts {between!r} between prompt and answer, which is no white space; "
                "render the prompts yourself, with Fact(opening=..., join=...)"
            )
        return cls(opening, closing, between[len(written) :], end.rstrip())

    def render(self, fact: Fact, *, end: bool = False) -> Fact:
        """Return the fact with all its prompts as messages; ``end`` also scores and trains the turn's end."""
        if fact.rendered:
            raise FactError(f"the prompt {fact.prompt[:60]!r} is rendered already; render plain facts")
        return fact.replace(
            prompt=self._message(fact.prompt),
            train=self._messages(fact.train),
            validation=self._messages(fact.validation),
            held_out=self._messages(fact.held_out),
            choice=None if fact.choice is None else self._message(fact.choice),
            entailed=[self.render(related, end=end) for related in fact.entailed],
            others=[self.render(related, end=end) for related in fact.others],
            neighbours={
                kind: [self.render(related, end=end) for related in facts]
                for kind, facts in fact.neighbours.items()
            },
            opening=self.opening,
            closing=self.closing,
            join=self.join,
            end=self.end if end else fact.end,
        )

    def _message(self, prompt: str) -> str:
        return f"{self.opening}{prompt.strip()}{self.closing}"

    def _messages(self, prompts: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(self._message, prompts))


def _rendered(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # templates raise what they like
        roles = [message["role"] for message in messages]
        raise FactError(
            f"the chat template refuses the roles {roles} ({type(error).__name__}: {error}); some take no "
            "system message: leave system= out"
        ) from error
