"""Text to token ids and back, in one way everywhere.

1. The tokenizer cuts a string without special tokens; then a BOS token comes first, if requested, if there is
   one, and if the text does not begin with it already (a chat template writes it). TransformerLens would
   instead add BOS, EOS and pad tokens to the tokenizer itself.
2. Token ids are taken as they are (`inputs`). Ids outside the embedding, and rows longer than the model's
   context, are refused; with ``truncate="left"`` long rows lose their first tokens, after BOS.
3. Strings of different lengths are padded on the right, as the attention mask says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechunlearn.errors import ModelError
from mechunlearn.models import inputs
from mechunlearn.models.inputs import Words
from mechunlearn.models.token_rows import Truncate, beyond_context, strings_of, with_bos


class Tokens:
    """The methods of a model that turn text into token ids and back."""

    hf: Any
    tokenizer: Any
    prepend_bos: bool
    truncate: Truncate

    def refresh(self) -> None:
        """Notice what was done to the model from outside."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of token ids."""
        raise NotImplementedError

    @property
    def context_length(self) -> int | None:
        """The largest number of tokens that the model reads; None if its configuration does not say."""
        return getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ModelError(
                "this model has no tokenizer, so it reads token ids only; "
                "build it with HookedModel.from_hf(model, tokenizer) to use strings"
            )
        return self.tokenizer

    @property
    def _vocabulary(self) -> int:
        return int(self.hf.get_input_embeddings().weight.shape[0])

    @property
    def pad_id(self) -> int:
        """The id that fills rows of a batch; it is masked, so any id will do that the embedding has."""
        ids = (getattr(self.tokenizer, f"{kind}_token_id", None) for kind in ("pad", "eos"))
        return next((i for i in ids if i is not None and i < self._vocabulary), 0)

    def _ids(self, text: str, prepend_bos: bool | None) -> list[int]:
        tokenizer = self._tokenizer()
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        prepend = self.prepend_bos if prepend_bos is None else prepend_bos
        return with_bos(ids, tokenizer.bos_token_id if prepend else None)

    def encode(
        self,
        input: Words,
        *,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        prepend_bos: bool | None = None,
        max_tokens: int | None = None,
    ) -> tuple[Int[Tensor, "batch width"], Int[Tensor, "batch width"]]:
        """Token ids and attention mask of an input.

        Args:
            input: a string, strings, token ids (which get no BOS token), or what a tokenizer returns: a
                mapping with ``input_ids`` and ``attention_mask``.
            attention_mask: 1 for tokens, 0 for padding, for ids that have padding.
            prepend_bos: overrides the model's own, for strings.
            max_tokens: strings lose what stands after this many tokens, BOS included; None to keep all.

        Raises:
            ModelError: the input is neither text nor ids, a row has no token or more than the context, an id
                is not in the embedding, or the mask has another shape than the ids.

        Example:
            >>> tokens, mask = mu.world.model().encode(["Mary Lee", "Mary Lee plays the sport of"])
            >>> tokens.shape == mask.shape
            True
        """
        self.refresh()
        texts = inputs.texts_of(input)
        if texts is None:
            return self._checked(*inputs.ids_of(input, attention_mask))
        if attention_mask is not None:
            raise ModelError("attention_mask is for token ids; strings get their own: leave it out")
        rows = [self._ids(text, prepend_bos) for text in texts]
        if not all(rows):
            raise ModelError(f"{input!r} has a text without a single token; give text, or prepend_bos=True")
        return self._padded(self._within_context([row[:max_tokens] for row in rows]))

    def _checked(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
    ) -> tuple[Int[Tensor, "batch width"], Int[Tensor, "batch width"]]:
        """Token ids that the model can read, on its device."""
        outside = (tokens < 0) | (tokens >= self._vocabulary)
        # A tokenizer may pad with an id that the embedding does not have.
        tokens = tokens.masked_fill(outside & (mask == 0), self.pad_id)
        unknown = (outside & (mask == 1)).nonzero().tolist()
        if unknown:
            row, position = unknown[0]
            raise ModelError(
                f"row {row} has the id {int(tokens[row, position])} at position {position}; the model's "
                f"embedding has the ids 0 to {self._vocabulary - 1}. Does the tokenizer belong to the model?"
            )
        longest = self.context_length
        if longest is not None and tokens.shape[1] > longest:
            rows = [row[marks == 1].tolist() for row, marks in zip(tokens, mask, strict=True)]
            return self._padded(self._within_context(rows), left=bool((mask[:, 0] == 0).any()))
        return tokens.to(self.device), mask.to(self.device)

    def _within_context(self, rows: Sequence[list[int]], *, room: int = 0) -> list[list[int]]:
        """The rows, cut if need be and allowed, so that ``room`` more tokens fit into the context."""
        longest = None if self.context_length is None else self.context_length - room
        bos = getattr(self.tokenizer, "bos_token_id", None)
        needs = f", which needs room for {room} new tokens," if room else ""
        cut = []
        for number, row in enumerate(rows):
            surplus = beyond_context(
                ModelError, row, longest=longest, bos=bos, truncate=self.truncate,
                name=f"row {number} of the input{needs}",
            )  # fmt: skip
            cut.append(row[: surplus.start] + row[surplus.stop :])
        return cut

    def _padded(
        self, rows: Sequence[list[int]], *, left: bool = False
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            start = width - len(row) if left else 0
            ids[number, start : start + len(row)] = torch.tensor(row)
            mask[number, start : start + len(row)] = 1
        return ids.to(self.device), mask.to(self.device)

    def to_tokens(self, input: Words, *, prepend_bos: bool | None = None) -> Int[Tensor, "batch pos"]:
        """Token ids of a string or of several, padded on the right.

        Args:
            input: the text; also whatever else :meth:`encode` takes.
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

    def to_str_tokens(self, input: Words, *, prepend_bos: bool | None = None) -> Any:
        """The tokens of an input, each as a string with its space, without padding.

        Args:
            input: text or ids, as for :meth:`encode`.
            prepend_bos: overrides the model's own; for text only.

        Returns:
            A list of strings for a string or one row of ids; a list of those for several.

        Example:
            >>> "".join(mu.world.model().to_str_tokens("Mary Lee", prepend_bos=False))
            ' Mary Lee'
        """
        texts = inputs.texts_of(input)
        if texts is None:
            ids = inputs.ids_of(input)
            rows = [row[marks == 1].tolist() for row, marks in zip(ids.tokens, ids.mask, strict=True)]
        else:
            rows = [self._ids(text, prepend_bos) for text in texts]
        strings = strings_of(self._tokenizer(), {token for row in rows for token in row})
        words = [[strings[token] for token in row] for row in rows]
        single = isinstance(input, str) or (texts is None and len(rows) == 1)
        return words[0] if single else words

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
        if len(ids) == 1:
            return ids[0]
        # SentencePiece writes a space before the first word itself, so " tennis" would have two.
        inner = self._ids(string[1:], False) if string[:1] == " " else []
        if len(inner) == 1 and strings_of(self._tokenizer(), inner)[inner[0]] == string:
            return inner[0]
        raise ModelError(
            f"{string!r} is {len(ids)} tokens, {self.to_str_tokens(string, prepend_bos=False)}, not one; "
            "mind the leading space, or score whole answers instead (mu.validate does)"
        )
