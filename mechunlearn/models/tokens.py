"""Text to token ids and back, in one way everywhere.

1. The tokenizer cuts a string without special tokens; then a BOS token comes first, if requested and if there
   is one. TransformerLens would instead add BOS, EOS and pad tokens to the tokenizer itself.
2. Strings of different lengths are padded on the right, as the attention mask says.
3. Only ``generate`` pads on the left, because new tokens are appended on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from jaxtyping import Int
from torch import Tensor

from mechunlearn.errors import ModelError

Words = str | Sequence[str] | Int[Tensor, "batch pos"] | Int[Tensor, "pos"]
"""The input of a model: a string, several strings, or token ids."""


class Tokens:
    """The methods of a model that turn text into token ids and back, and generate text."""

    tokenizer: Any
    prepend_bos: bool

    @property
    def device(self) -> torch.device:
        """The device of token ids."""
        raise NotImplementedError

    @property
    def bridge(self) -> Any:
        """The bridge, which generates."""
        raise NotImplementedError

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ModelError(
                "this model has no tokenizer, so it reads token ids only; "
                "build it with HookedModel.from_hf(model, tokenizer) to use strings"
            )
        return self.tokenizer

    @property
    def _pad(self) -> int:
        ids = (getattr(self.tokenizer, f"{kind}_token_id", None) for kind in ("pad", "eos"))
        return next((i for i in ids if i is not None), 0)

    def _ids(self, text: str, prepend_bos: bool | None) -> list[int]:
        tokenizer = self._tokenizer()
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        prepend = self.prepend_bos if prepend_bos is None else prepend_bos
        return [tokenizer.bos_token_id, *ids] if prepend and tokenizer.bos_token_id is not None else ids

    def encode(
        self,
        input: Words,
        *,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        prepend_bos: bool | None = None,
        pad_left: bool = False,
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Token ids and attention mask of an input.

        Args:
            input: a string, strings, or token ids (which get no BOS token).
            attention_mask: 1 for tokens, 0 for padding, for ids that have padding.
            prepend_bos: overrides the model's own.
            pad_left: put the padding on the left.

        Raises:
            ModelError: the model has no tokenizer, or a text has no tokens.

        Example:
            >>> tokens, mask = mu.world.model().encode(["Mary Lee", "Mary Lee plays the sport of"])
            >>> tokens.shape == mask.shape
            True
        """
        if isinstance(input, Tensor):
            tokens = input.reshape(-1, input.shape[-1]).to(self.device)
            mask = torch.ones_like(tokens) if attention_mask is None else attention_mask.to(self.device)
            return tokens, mask
        rows = [self._ids(text, prepend_bos) for text in ([input] if isinstance(input, str) else input)]
        if not rows or not all(rows):
            raise ModelError(f"{input!r} has a text without a single token; give text, or prepend_bos=True")
        return self._padded(rows, pad_left)

    def _padded(
        self, rows: Sequence[list[int]], left: bool
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            start = width - len(row) if left else 0
            ids[number, start : start + len(row)] = torch.tensor(row)
            mask[number, start : start + len(row)] = 1
        return ids.to(self.device), mask.to(self.device)

    def to_tokens(
        self, input: str | Sequence[str], *, prepend_bos: bool | None = None
    ) -> Int[Tensor, "batch pos"]:
        """Token ids of a string or of several, padded on the right.

        Args:
            input: the text.
            prepend_bos: overrides the model's own.

        Example:
            >>> mu.world.model().to_tokens("Mary Lee").ndim
            2
        """
        return self.encode(input, prepend_bos=prepend_bos)[0]

    def to_string(self, tokens: Int[Tensor, "..."] | Sequence[int]) -> str | list[str]:
        """The text of token ids: a string for one row, a list for several.

        Args:
            tokens: ids [pos] or [batch pos].

        Example:
            >>> hm = mu.world.model()
            >>> hm.to_string(hm.to_tokens("Mary Lee", prepend_bos=False)[0])
            ' Mary Lee'
        """
        ids = torch.as_tensor(tokens)
        decode = self._tokenizer().decode
        if ids.ndim == 2:
            return [str(decode(row, clean_up_tokenization_spaces=False)) for row in ids.tolist()]
        return str(decode(ids.reshape(-1).tolist(), clean_up_tokenization_spaces=False))

    @overload
    def to_str_tokens(  # type: ignore[overload-overlap]
        self, input: str | Int[Tensor, "pos"] | Int[Tensor, "1 pos"], *, prepend_bos: bool | None = None
    ) -> list[str]: ...

    @overload
    def to_str_tokens(self, input: Sequence[str], *, prepend_bos: bool | None = None) -> list[list[str]]: ...

    def to_str_tokens(
        self,
        input: str | Sequence[str] | Int[Tensor, "pos"] | Int[Tensor, "1 pos"],
        *,
        prepend_bos: bool | None = None,
    ) -> list[str] | list[list[str]]:
        """The tokens of a string, or of one row of ids, each as a string; a list of those for a list.

        Args:
            input: the text, several texts, or ids.
            prepend_bos: overrides the model's own; for text only.

        Example:
            >>> "".join(mu.world.model().to_str_tokens("Mary Lee", prepend_bos=False))
            ' Mary Lee'
        """
        if not isinstance(input, str | Tensor):
            return [self.to_str_tokens(text, prepend_bos=prepend_bos) for text in input]
        ids = self._ids(input, prepend_bos) if isinstance(input, str) else input.reshape(-1).tolist()
        return [str(self.to_string([token])) for token in ids]

    def to_single_token(self, string: str) -> int:
        """The id of a string that is exactly one token.

        Args:
            string: the text; for most tokenizers a word inside a sentence starts with a space.

        Raises:
            ModelError: it is not one token; the message shows its tokens.

        Example:
            >>> isinstance(mu.world.model().to_single_token(" tennis"), int)
            True
        """
        ids = self._ids(string, False)
        if len(ids) != 1:
            raise ModelError(
                f"{string!r} is {len(ids)} tokens, {self.to_str_tokens(string, prepend_bos=False)}, not one; "
                "mind the leading space, or score whole answers instead (mu.validate does)"
            )
        return ids[0]

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
            input: a string, strings, or token ids without padding.
            max_new_tokens: the largest number of new tokens.
            do_sample: sample instead of taking the most probable token.
            temperature: flattens (above 1) or sharpens the distribution.
            seed: seed of sampling; the global generator is left as it was.
            prepend_bos: overrides the model's own, for strings.
            stop_at_eos: stop at the tokenizer's EOS token.
            use_past_kv_cache: keep keys and values instead of running the whole text again.

        Returns:
            Prompt and continuation: a string for a string, a list for strings, ids for ids.

        Example:
            >>> mu.world.model().generate("Frank Kennedy plays the sport of", max_new_tokens=1)
            ' Frank Kennedy plays the sport of hockey'
        """
        tokens, mask = self.encode(input, prepend_bos=prepend_bos, pad_left=True)
        eos = getattr(self.tokenizer, "eos_token_id", None) if stop_at_eos else None
        # Without top_k and top_p here, the filters of the model's generation config would apply.
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if do_sample else {}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            written = self.bridge.original_model.generate(
                tokens, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=do_sample,
                use_cache=use_past_kv_cache, pad_token_id=self._pad, eos_token_id=eos, **sampling,
            )  # fmt: skip
        if isinstance(input, Tensor):
            return written
        # The prompt without its padding, then the new tokens: decoded together, spaces between them survive.
        rows = [row[marks == 1] for row, marks in zip(written[:, : mask.shape[1]], mask, strict=True)]
        news = written[:, mask.shape[1] :]
        texts = [self._tokenizer().decode(torch.cat(pair), skip_special_tokens=True,
                                          clean_up_tokenization_spaces=False)
                 for pair in zip(rows, news, strict=True)]  # fmt: skip
        return texts[0] if isinstance(input, str) else texts
