"""Continue a text, with hooks, by nothing but what the caller asks for.

1. Rows are padded on the left, because new tokens are appended on the right.
2. The checkpoint's own ``generation_config`` does not count: its penalties, beams and forced tokens would
   make a greedy text another one than the most probable tokens.
3. Keys and values are cached only if a model opened through TransformerLens then gives the logits that it
   gives for the complete text (`key_value_caches`).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from mechunlearn.core.checks import integer
from mechunlearn.errors import FallbackWarning, ModelError
from mechunlearn.models import inputs, key_value_caches
from mechunlearn.models.inputs import Words
from mechunlearn.models.tokens import Tokens


class Generation(Tokens):
    """The method of a model that generates text."""

    @property
    def bridge(self) -> Any:
        """The bridge, whose hooks fire."""
        raise NotImplementedError

    def generate(
        self,
        input: Words,
        *,
        max_new_tokens: int = 10,
        do_sample: bool = False,
        temperature: float = 1.0,
        seed: int = 0,
        prepend_bos: bool | None = None,
        stop_at_eos: bool = True,
        use_past_kv_cache: bool = True,
    ) -> Any:
        """Continue a text, hooks included.

        With ``use_past_kv_cache`` hooks see one new position at a time after the first step; switch it off
        for hooks that count positions.

        Args:
            input: a string, strings, token ids, or what a tokenizer returns.
            max_new_tokens: the largest number of new tokens.
            do_sample: sample instead of taking the most probable token.
            temperature: flattens (above 1) or sharpens the distribution.
            seed: seed of sampling; the global generator is left as it was.
            prepend_bos: overrides the model's own, for strings.
            stop_at_eos: stop at the tokenizer's EOS token.
            use_past_kv_cache: keep keys and values instead of running the whole text again.

        Returns:
            Prompt and continuation: a string for a string, a list for strings; else ids, padded on the left.

        Raises:
            ModelError: see :meth:`encode`; or a prompt and its new tokens are longer than the context.

        Example:
            >>> mu.world.model().generate("Frank Kennedy plays the sport of", max_new_tokens=1)
            ' Frank Kennedy plays the sport of hockey'
        """
        rows = self._prompts(input, prepend_bos, max_new_tokens)
        tokens, mask = self._padded(rows, left=True)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            written = self.bridge.original_model.generate(
                tokens,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=do_sample,
                use_cache=use_past_kv_cache and self._may_cache(),
                pad_token_id=self.pad_id,
                eos_token_id=getattr(self.tokenizer, "eos_token_id", None) if stop_at_eos else None,
                **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if do_sample else {}),
            )
        if inputs.texts_of(input) is None:
            return written
        # The prompt without its padding, then the new tokens: decoded together, spaces between them survive.
        ids = [row + new.tolist() for row, new in zip(rows, written[:, mask.shape[1] :], strict=True)]
        decode = self._tokenizer().decode
        texts = [decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in ids]
        return texts[0] if isinstance(input, str) else texts

    def _prompts(self, input: Words, prepend_bos: bool | None, new: int) -> list[list[int]]:
        """The prompts without padding, with room for the new tokens."""
        integer(ModelError, 1, max_new_tokens=new)
        longest = self.context_length
        if longest is not None and new >= longest:
            raise ModelError(
                f"max_new_tokens is {new}, and the model reads at most {longest} tokens, prompt included; "
                "ask for fewer"
            )
        tokens, mask = self.encode(input, prepend_bos=prepend_bos)
        rows = [row[marks == 1].tolist() for row, marks in zip(tokens, mask, strict=True)]
        return self._within_context(rows, room=new)

    def _may_cache(self) -> bool:
        reason = key_value_caches.reason_against(self.bridge)
        if reason:
            cost = "generate runs the whole text for every new token"
            warnings.warn(f"{cost}, since {reason}", FallbackWarning, stacklevel=3)
        return not reason
