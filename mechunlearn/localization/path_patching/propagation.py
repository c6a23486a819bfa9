"""How a change propagates from senders to receivers, computed from cached activations without a run.

Attention between sender and receivers is held, so nothing moves from token to token. Token by token:

1. A sender changes the stream by what it writes in the other run minus what it writes in this one: for a
   head, the difference of ``z`` times its output matrix. Under a norm after attention it is that norm of the
   sum with this head replaced, minus what attention wrote. Tokens at which nothing differs are left out.
2. The change passes from layer to layer. MLPs that are held leave it as it is; recomputed ones add what they
   make of the changed stream minus what they wrote. The tokens of all senders pass an MLP together.
3. A receiver reads the stream plus the change through its own norm, which is never held.
4. If all receivers are values of one layer, the patterns that mix them do not change. Then the stream after
   that block follows by arithmetic, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.block_functions import BlockFunctions
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.patches import Write
from mechunlearn.localization.path_patching.paths import Paths, sender_point


@dataclass(frozen=True, eq=False)
class TokenDeltas:
    """The tokens that patches change, and by how much, ordered by the time at which their senders write.

    ``patch`` and ``row`` are the patch and the row of the run of each token. ``column`` is the index of its
    position ``pos`` among those that are looked at in the row. Recomputed MLPs add to ``delta`` in place.
    """

    patch: Int[Tensor, "token"]
    row: Int[Tensor, "token"]
    column: Int[Tensor, "token"]
    pos: Int[Tensor, "token"]
    time: Int[Tensor, "token"]
    delta: Float[Tensor, "token d_model"]

    def before(self, time: int) -> TokenDeltas:
        """The tokens whose senders have written before some time; their deltas are views of these."""
        count = int((self.time < time).sum())
        columns = (self.patch, self.row, self.column, self.pos, self.time, self.delta)
        return TokenDeltas(*(column[:count] for column in columns))

    def at(self, activation: Float[Tensor, "row pos ..."]) -> Float[Tensor, "token ..."]:
        """An activation of the run at these tokens."""
        return activation[self.row, self.pos]


@dataclass(frozen=True, eq=False)
class Propagator:
    """Propagates changes from senders to receivers.

    The run holds the activations of ``paths.run_names``, and ``source`` those of ``paths.source_names``.
    """

    functions: BlockFunctions
    paths: Paths
    run: CachedRun
    source: Mapping[str, Float[Tensor, "source ..."]]
    source_rows: Int[Tensor, "row"]

    def sent(
        self,
        sender: Int[Tensor, "patch"],
        row: Int[Tensor, "patch"],
        at: Int[Tensor, "row column"],
        replaced: Bool[Tensor, "patch column"],
    ) -> TokenDeltas:
        """The tokens that senders change, and by how much.

        ``sender`` is the index of each patch's sender, and ``row`` its row of the run. ``at`` holds the
        positions that are looked at in each row; ``replaced`` is True at those where a patch replaces its
        sender.
        """
        parts = []
        # In the order of writing, so that the tokens that move at some time are the first ones: `before`
        # cuts them out without a copy, and what is added there shows in all.
        times = {s: self.paths.write_time(self.paths.senders[s]) for s in set(sender.tolist())}
        for s, time in sorted(times.items(), key=lambda item: (item[1], item[0])):
            patch, column = ((sender == s)[:, None] & replaced).nonzero(as_tuple=True)
            rows = row[patch]
            pos = at[rows, column]
            delta = self._change(self.paths.senders[s], rows, pos)
            changed = (delta != 0).any(1)
            columns = (patch, rows, column, pos, torch.full_like(patch, time), delta)
            parts.append([values[changed] for values in columns])
        return TokenDeltas(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _change(
        self, site: Site, row: Int[Tensor, "token"], pos: Int[Tensor, "token"]
    ) -> Float[Tensor, "token d_model"]:
        """The change of the stream when a sender writes what it writes in the other run."""
        activations, name = self.run.activations, sender_point(site)
        there, here, source_row = self.source[name], activations[name], self.source_rows[row]
        if site.kind != "head" or site.layer is None or site.index is None:
            return there[source_row, pos].to(here) - here[row, pos]
        z = there[source_row, pos, site.index].to(here) - here[row, pos, site.index]
        delta = self.functions.head(site.layer, site.index, z)
        pre_norm = self.functions.pre_norm_hook(site.layer)
        if pre_norm is None:
            return delta
        out = self.functions.post_norm(site.layer, activations[pre_norm][row, pos] + delta)
        out = out - activations[f"blocks.{site.layer}.hook_attn_out"][row, pos]
        # The norm may round differently than in the run, but where `z` is the same the change is exactly 0.
        return torch.where((z != 0).any(1, keepdim=True), out, 0.0)

    def inputs(
        self, tokens: TokenDeltas, row: Int[Tensor, "patch"], at: Int[Tensor, "row column"]
    ) -> dict[str, Float[Tensor, "patch column ..."]]:
        """What the receivers read, by hook point: that of the run, except where a change arrives.

        For the logits it is the stream after the last block, under ``"logits"``. Recomputed MLPs add to the
        deltas of ``tokens``. ``row`` and ``at`` are those of `sent`.
        """
        inputs = {write.name: self.run.activations[write.name][row] for write in self.paths.writes}
        if not inputs:
            inputs["logits"] = self.run.resid[-1][row[:, None], at[row]]
        recomputed = self.paths.mlps_between if self.paths.mlps == "recompute" else ()
        for time in range(self.paths.last_read + 1):
            moving = tokens.before(time)
            if not len(moving.patch):
                continue
            # Receivers come first: an MLP that reads at the same time writes only afterwards.
            for write in self.paths.writes:
                if self.paths.read_time(write.kind, write.layer) == time:
                    self._receive(write, self._stream(time, moving), moving, inputs[write.name])
            for layer in recomputed:
                if self.paths.read_time("mlp", layer) == time:
                    wrote = moving.at(self.run.activations[f"blocks.{layer}.hook_mlp_out"])
                    moving.delta.add_(self.functions.mlp(layer, self._stream(time, moving)) - wrote)
        if not self.paths.writes:
            inputs["logits"][tokens.patch, tokens.column] += tokens.delta
        return inputs

    def after_values(
        self, inputs: Mapping[str, Float[Tensor, "patch pos ..."]], row: Int[Tensor, "patch"]
    ) -> Float[Tensor, "patch pos d_model"]:
        """The stream after the block whose values alone are receivers; ``inputs`` holds these values."""
        (write,), activations = self.paths.writes, self.run.activations
        layer, block = write.layer, f"blocks.{write.layer}."
        shape = self.functions.hm.arch.shape
        shared = shape.n_heads // shape.n_kv_heads
        heads = [head for unit in write.units or () for head in range(unit * shared, (unit + 1) * shared)]
        values = inputs[write.name] - activations[write.name][row]
        z = self.functions.mix(activations[f"{block}attn.hook_pattern"][row], values, heads)
        # Attention has moved the change, so tokens are chosen anew; only those that change pass norm and MLP.
        patch, pos = (z != 0).flatten(2).any(2).nonzero(as_tuple=True)
        written = [self.functions.head(layer, head, z[patch, pos, i]) for i, head in enumerate(heads)]
        delta, rows = torch.stack(written).sum(0), row[patch]
        wrote = activations[f"{block}hook_attn_out"][rows, pos]
        if pre_norm := self.functions.pre_norm_hook(layer):
            delta = self.functions.post_norm(layer, activations[pre_norm][rows, pos] + delta) - wrote
        after = self.run.resid[layer + 1][row]
        if not self.paths.parallel:
            stream = self.run.resid[layer][rows, pos] + wrote + delta
            delta = delta + self.functions.mlp(layer, stream) - activations[f"{block}hook_mlp_out"][rows, pos]
        after[patch, pos] += delta
        return after

    def _receive(
        self, write: Write, stream: Float[Tensor, "token d_model"], tokens: TokenDeltas, into: Tensor
    ) -> None:
        """Write what one receiver makes of the changed stream into its activation."""
        if write.units is None:
            # Of an MLP the output is written, which its input alone decides.
            state = self.functions.mlp(write.layer, stream) if write.kind == "mlp" else stream
            into[tokens.patch, tokens.column] = state
            return
        units = torch.tensor(write.units, device=stream.device)
        vectors = self.functions.project(write.layer, write.kind, stream, write.units)
        into[tokens.patch[:, None], tokens.column[:, None], units] = vectors

    def _stream(self, time: int, tokens: TokenDeltas) -> Float[Tensor, "token d_model"]:
        """The changed stream at some time."""
        stream = tokens.at(self.run.resid[time // 2])
        # At odd times attention of the block has written, and the MLP has not.
        if time % 2:
            stream = stream + tokens.at(self.run.activations[f"blocks.{time // 2}.hook_attn_out"])
        return stream + tokens.delta
