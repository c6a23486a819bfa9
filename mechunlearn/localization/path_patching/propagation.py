"""What reaches the receivers of a path, by arithmetic on caches: no run of the model, and no run per sender.

With attention held between sender and receivers, nothing moves from token to token. So, token by token:

1. A sender changes the stream by what it writes in the other run minus what it writes in this one: for a
   head, the difference of ``z`` times its output matrix; under a norm after attention, that norm of the sum
   with this head replaced, minus what attention wrote. Tokens at which nothing differs are dropped.
2. The change is carried from layer to layer. Held MLPs leave it alone; others add what they make of the
   changed stream minus what they wrote. The tokens of all senders go through an MLP together.
3. A receiver reads the stream plus the change through its own norm, which is never held.
4. Where values alone are received, and in one layer, the patterns that mix them stay as they are. Then the
   stream after that block follows by arithmetic too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.block_functions import Parts
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.patches import Write
from mechunlearn.localization.path_patching.paths import Route, sender_point


@dataclass(frozen=True, eq=False)
class TokenDeltas:
    """Tokens of jobs, packed; those of one sender side by side, senders in the order in which they write.

    Args:
        job: the job of each token.
        row: its row of the run.
        cell: its place among those looked at in the row.
        pos: its position.
        sent: when its sender writes.
        delta: the change of the stream at that token; grows as it is carried on.
    """

    job: Int[Tensor, "token"]
    row: Int[Tensor, "token"]
    cell: Int[Tensor, "token"]
    pos: Int[Tensor, "token"]
    sent: Int[Tensor, "token"]
    delta: Float[Tensor, "token d_model"]

    def before(self, time: int) -> TokenDeltas:
        """Those whose senders have written by some time."""
        n = int((self.sent < time).sum())
        columns = (self.job, self.row, self.cell, self.pos, self.sent, self.delta)
        return TokenDeltas(*(column[:n] for column in columns))

    def of(self, activation: Float[Tensor, "row pos ..."]) -> Float[Tensor, "token ..."]:
        """An activation of the run at these tokens."""
        return activation[self.row, self.pos]


@dataclass(frozen=True, eq=False)
class Propagator:
    """Carries changes from senders to receivers.

    Args:
        parts: what the blocks of the model compute.
        route: senders and receivers.
        run: what is patched; it has kept ``route.kept_by_run``.
        source: activations of the other run; those of ``route.kept_by_source``.
        given: the row of the source for each row of the run.
    """

    parts: Parts
    route: Route
    run: CachedRun
    source: Mapping[str, Float[Tensor, "given ..."]]
    given: Int[Tensor, "row"]

    def sent(
        self,
        sender: Int[Tensor, "job"],
        row: Int[Tensor, "job"],
        at: Int[Tensor, "row cell"],
        asked: Bool[Tensor, "job cell"],
    ) -> TokenDeltas:
        """The tokens that senders change, and by how much.

        Args:
            sender: of every job, by number.
            row: of the run.
            at: the positions looked at in each row of the run.
            asked: at which of them the sender is replaced.
        """
        found = []
        for s in sorted(set(sender.tolist()), key=lambda s: self.route.sends(self.route.senders[s])):
            job, cell = ((sender == s)[:, None] & asked).nonzero(as_tuple=True)
            rows = row[job]
            pos, time = at[rows, cell], self.route.sends(self.route.senders[s])
            delta = self._change(self.route.senders[s], rows, pos)
            there = (delta != 0).any(1)
            columns = (job, rows, cell, pos, torch.full_like(job, time), delta)
            found.append([column[there] for column in columns])
        return TokenDeltas(*(torch.cat(columns) for columns in zip(*found, strict=True)))

    def _change(
        self, site: Site, row: Int[Tensor, "token"], pos: Int[Tensor, "token"]
    ) -> Float[Tensor, "token d_model"]:
        """What a sender's writing the other run's output changes in the stream."""
        kept, name = self.run.activations, sender_point(site)
        there, here, theirs = self.source[name], kept[name], self.given[row]
        if site.kind != "head" or site.layer is None or site.index is None:
            return there[theirs, pos].to(here) - here[row, pos]
        z = there[theirs, pos, site.index].to(here) - here[row, pos, site.index]
        delta = self.parts.head(site.layer, site.index, z)
        unnormed = self.parts.unnormed(site.layer)
        if unnormed is None:
            return delta
        out = self.parts.normed(site.layer, kept[unnormed][row, pos] + delta)
        out = out - kept[f"blocks.{site.layer}.hook_attn_out"][row, pos]
        # A norm may round otherwise in another batch; what is not sent is exactly nothing.
        return torch.where((z != 0).any(1, keepdim=True), out, 0.0)

    def inputs(
        self, cells: TokenDeltas, row: Int[Tensor, "job"], at: Int[Tensor, "row cell"]
    ) -> dict[str, Float[Tensor, "job cell ..."]]:
        """What the receivers read, by hook point: the run's own, but for where a change arrives.

        Args:
            cells: what was sent; carried on in place.
            row: the row of every job.
            at: as for `sent`. The final stream, for the logits, is given under ``"logits"``.
        """
        found = {write.name: self.run.activations[write.name][row] for write in self.route.writes}
        if not found:
            found["logits"] = self.run.resid[-1][row[:, None], at[row]]
        between = self.route.between if self.route.mlps == "recompute" else ()
        for time in range(self.route.last + 1):
            moving = cells.before(time)
            if not len(moving.job):
                continue
            for write in self.route.writes:
                if self.route.reads(write.kind, write.layer) == time:
                    self._receive(write, self._stream(time, moving), moving, found[write.name])
            for layer in between:
                if self.route.reads("mlp", layer) == time:
                    wrote = moving.of(self.run.activations[f"blocks.{layer}.hook_mlp_out"])
                    moving.delta.add_(self.parts.mlp(layer, self._stream(time, moving)) - wrote)
        if not self.route.writes:
            found["logits"][cells.job, cells.cell] += cells.delta
        return found

    def after(
        self, inputs: Mapping[str, Float[Tensor, "job pos ..."]], row: Int[Tensor, "job"]
    ) -> Float[Tensor, "job pos d_model"]:
        """The stream after the block in which values alone are received.

        Args:
            inputs: what they are, as `inputs` gives it.
            row: the row of every job.
        """
        (write,), kept = self.route.writes, self.run.activations
        layer, block, units = write.layer, f"blocks.{write.layer}.", write.units or ()
        shape = self.parts.hm.arch.shape
        shared = shape.n_heads // shape.n_kv_heads
        heads = [head for unit in units for head in range(unit * shared, (unit + 1) * shared)]
        values = inputs[write.name] - kept[write.name][row]
        z = self.parts.mixed(kept[f"{block}attn.hook_pattern"][row], values, heads)
        job, pos = (z != 0).flatten(2).any(2).nonzero(as_tuple=True)
        out = torch.stack([self.parts.head(layer, h, z[job, pos, i]) for i, h in enumerate(heads)]).sum(0)
        rows = row[job]
        wrote = kept[f"{block}hook_attn_out"][rows, pos]
        if unnormed := self.parts.unnormed(layer):
            out = self.parts.normed(layer, kept[unnormed][rows, pos] + out) - wrote
        after = self.run.resid[layer + 1][row]
        if not self.route.parallel:
            stream = self.run.resid[layer][rows, pos] + wrote + out
            out = out + self.parts.mlp(layer, stream) - kept[f"{block}hook_mlp_out"][rows, pos]
        after[job, pos] += out
        return after

    def _receive(
        self, write: Write, stream: Float[Tensor, "token d_model"], at: TokenDeltas, into: Tensor
    ) -> None:
        """Put what one receiver reads where a change arrives."""
        if write.units is None:
            into[at.job, at.cell] = self.parts.mlp(write.layer, stream) if write.kind == "mlp" else stream
            return
        units = torch.tensor(write.units, device=stream.device)
        found = self.parts.project(write.layer, write.kind, stream, write.units)
        into[at.job[:, None], at.cell[:, None], units] = found

    def _stream(self, time: int, moving: TokenDeltas) -> Float[Tensor, "token d_model"]:
        """The stream that is read at some time, changed."""
        stream = moving.of(self.run.resid[time // 2])
        if time % 2:
            stream = stream + moving.of(self.run.activations[f"blocks.{time // 2}.hook_attn_out"])
        return stream + moving.delta
