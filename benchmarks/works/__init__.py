"""The works, by the name under which the command line knows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.models import PatchTask
from benchmarks.work import Work
from benchmarks.works.direct import direct_paths
from benchmarks.works.edges import eap_edges
from benchmarks.works.nodes import node_attribution, node_attribution_frozen
from benchmarks.works.probes import probe_capture
from benchmarks.works.resid import resid_all, resid_prefix8
from benchmarks.works.rome import rome_mlp_windows, rome_states
from benchmarks.works.single import per_site
from benchmarks.works.through import mlp_to_v_frozen, mlp_to_v_recomputed

WORKS: Mapping[str, Callable[[PatchTask], Work]] = {
    make.__name__: make
    for make in (
        resid_all,
        resid_prefix8,
        rome_states,
        rome_mlp_windows,
        direct_paths,
        mlp_to_v_frozen,
        mlp_to_v_recomputed,
        eap_edges,
        node_attribution,
        node_attribution_frozen,
        probe_capture,
        per_site,
    )
}

__all__ = ["WORKS"]
