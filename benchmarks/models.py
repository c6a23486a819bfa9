"""Random models of real shapes, and prompts of random tokens: no download, no tokenizer.

1. A model is built from a configuration and filled from a seed: weights of standard deviation 0.06, biases
   and norms random too, so that no term of a formula is zero or one by chance.
2. Both sides share its tensors: the engine and TransformerLens see it through the bridge, others as the
   plain Hugging Face model it is, with the attention that Hugging Face picks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.models.hooked import HookedModel

FAMILIES = {"gpt2-small": "GPT2", "gemma-2-9b": "Gemma2"}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "gpt2-small": {},
    "gemma-2-9b": {
        "hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "intermediate_size": 14336, "vocab_size": 256000,
        "query_pre_attn_scalar": 256,
    },
}  # fmt: skip
"""Published sizes; whatever is not named is the family's default (GPT-2's is its small model)."""

QUICK: Mapping[str, Mapping[str, Any]] = {
    "gpt2-small": {"n_layer": 3, "n_embd": 32, "n_head": 4, "vocab_size": 101, "n_positions": 32},
    "gemma-2-9b": {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 64, "vocab_size": 101, "query_pre_attn_scalar": 8,
        "sliding_window": 5,
    },
}  # fmt: skip
"""The same families in a size that runs in milliseconds, to try everything out."""


@dataclass(frozen=True, eq=False)
class PatchTask:
    """What every work is measured on.

    Args:
        hm: the model as this library sees it.
        plain: the same tensors as a plain Hugging Face model.
        rows: prompts per batch.
        length: tokens per prompt.
        sample: sites at which a peer of uniform cost is timed per round.
        quick: whether this is a trial, with a tiny model.
    """

    hm: HookedModel
    plain: Any
    rows: int = 8
    length: int = 24
    sample: int = 8
    quick: bool = False

    @property
    def layers(self) -> int:
        """How many blocks the model has."""
        return self.hm.arch.shape.n_layers

    @property
    def blocks(self) -> Any:
        """The plain model's blocks."""
        return _backbone(self.plain)[0]

    @property
    def embedding(self) -> Any:
        """The plain model's token embedding."""
        return _backbone(self.plain)[1]

    def mlp(self, layer: int) -> Any:
        """The plain module whose output is what the MLP adds to the residual stream."""
        block = self.blocks[layer]
        return getattr(block, "post_feedforward_layernorm", block.mlp)

    def prompts(self, *, rows: int | None = None, same: int = 0, seed: int = 0) -> Prompts:
        """Draw prompts in pairs.

        Args:
            rows: how many; None for the setting's own number.
            same: leading tokens that the two of a pair have in common; after them every token differs.
            seed: of the draw.
        """
        count = self.rows if rows is None else rows
        vocabulary = self.hm.hf.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(seed)
        clean = torch.randint(vocabulary, (count, self.length), generator=generator)
        step = torch.randint(1, vocabulary, (count, self.length), generator=generator)
        step[:, :same] = 0
        first = torch.randint(vocabulary, (count, 1), generator=generator)
        second = (first + torch.randint(1, vocabulary, (count, 1), generator=generator)) % vocabulary
        device = self.hm.device
        return Prompts(
            clean.to(device),
            ((clean + step) % vocabulary).to(device),
            torch.cat([first, second], dim=1).to(device),
        )


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts in pairs, and two answers whose logits are compared after the last token.

    Args:
        clean: token ids.
        corrupt: token ids of the other prompts.
        answers: answer and foil.
    """

    clean: Int[Tensor, "row pos"]
    corrupt: Int[Tensor, "row pos"]
    answers: Int[Tensor, "row 2"]

    def difference(self, logits: Float[Tensor, "row *pos vocab"]) -> Float[Tensor, "row"]:
        """The difference of the two logits at the last position."""
        last = logits if logits.ndim == 2 else logits[:, -1]
        found = last.gather(1, self.answers)
        return found[:, 0] - found[:, 1]


def setting(
    shape: str = "gpt2-small",
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    quick: bool = False,
    seed: int = 0,
) -> PatchTask:
    """Build a random model of a shape.

    Args:
        shape: a key of `SHAPES`.
        device: where it lies.
        dtype: its precision.
        quick: build the tiny model of that family.
        seed: of its weights.
    """
    import transformers

    family, sizes = FAMILIES[shape], (QUICK if quick else SHAPES)[shape]
    config = getattr(transformers, f"{family}Config")(**sizes, bos_token_id=None, eos_token_id=None)
    factory: Any = transformers.AutoModelForCausalLM
    with torch.device(device):
        model = factory.from_config(config, dtype=dtype).eval()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.06, generator=generator)
            # Gemma's norms count from one themselves.
            if parameter.ndim == 1 and name.endswith("weight") and family == "GPT2":
                parameter.add_(1.0)
    hm = HookedModel.from_hf(model)
    if quick:
        return PatchTask(hm, model, rows=2, length=7, sample=3, quick=True)
    return PatchTask(hm, model)


def _backbone(plain: Any) -> tuple[Any, Any]:
    if hasattr(plain, "transformer"):
        return plain.transformer.h, plain.transformer.wte
    return plain.model.layers, plain.model.embed_tokens
