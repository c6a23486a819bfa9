"""Look where a language model looks facts up, cut exactly there, and doubt the result.

1. **Look**: localizers score sites of a :class:`HookedModel` for some :class:`Facts`.
2. **Cut**: :func:`edit` changes weights inside a :class:`Localization` and nowhere else.
3. **Doubt**: :func:`audit` attacks the edit and puts every number beside its controls.

Verbs run models; methods on values never do. Importing changes nothing.
"""

from mechunlearn import world as world
from mechunlearn.auditing import attacks as attacks
from mechunlearn.auditing.audit import audit as audit
from mechunlearn.auditing.report.report import Report as Report
from mechunlearn.core.facts.collection import Facts as Facts
from mechunlearn.core.facts.fact import Fact as Fact
from mechunlearn.core.hooks import Hook as Hook
from mechunlearn.core.hooks import ablate as ablate
from mechunlearn.core.hooks import cache as cache
from mechunlearn.core.hooks import noise as noise
from mechunlearn.core.hooks import patch as patch
from mechunlearn.core.hooks import patch_middle as patch_middle
from mechunlearn.core.hooks import steer as steer
from mechunlearn.core.scores.edges import EdgeScores as EdgeScores
from mechunlearn.core.scores.scores import Scores as Scores
from mechunlearn.core.sites.localization import Localization as Localization
from mechunlearn.core.sites.site import Site as Site
from mechunlearn.core.statistics import paired_difference as paired_difference
from mechunlearn.editing import closed_form as closed_form
from mechunlearn.editing import objectives as objectives
from mechunlearn.editing import whp as whp
from mechunlearn.editing.edits.algebra import Delta as Delta
from mechunlearn.editing.edits.diff import diff as diff
from mechunlearn.editing.edits.edits import Edit as Edit
from mechunlearn.editing.edits.history import History as History
from mechunlearn.editing.edits.recipes import Optimizer as Optimizer
from mechunlearn.editing.edits.recipes import Recipe as Recipe
from mechunlearn.editing.edits.recipes import Stop as Stop
from mechunlearn.editing.studies.classes import ClassResult as ClassResult
from mechunlearn.editing.studies.classes import forget_class as forget_class
from mechunlearn.editing.studies.counting import CountCurve as CountCurve
from mechunlearn.editing.studies.counting import count_curve as count_curve
from mechunlearn.editing.studies.sequence import EditSequence as EditSequence
from mechunlearn.editing.studies.sequence import edit_sequence as edit_sequence
from mechunlearn.editing.studies.sizes import SizeCurve as SizeCurve
from mechunlearn.editing.studies.sizes import edit_size_curve as edit_size_curve
from mechunlearn.editing.training.fitting import edit as edit
from mechunlearn.editing.training.fitting import refit as refit
from mechunlearn.editing.training.limits import Limits as Limits
from mechunlearn.localization.attribution.edges import edge_attribution as edge_attribution
from mechunlearn.localization.attribution.nodes import attribution as attribution
from mechunlearn.localization.engine.engine import Engine as Engine
from mechunlearn.localization.fact_lookup.probe_and_swap import fact_lookup as fact_lookup
from mechunlearn.localization.fact_lookup.through_heads import path_lookup as path_lookup
from mechunlearn.localization.lenses import direct_logit_attribution as direct_logit_attribution
from mechunlearn.localization.lenses import logit_lens as logit_lens
from mechunlearn.localization.patching.activation import activation_patch as activation_patch
from mechunlearn.localization.patching.corruption import MeanAblation as MeanAblation
from mechunlearn.localization.patching.corruption import Noise as Noise
from mechunlearn.localization.patching.corruption import OtherSubject as OtherSubject
from mechunlearn.localization.patching.corruption import Resample as Resample
from mechunlearn.localization.patching.corruption import ZeroAblation as ZeroAblation
from mechunlearn.localization.path_patching.hooks import path_hooks as path_hooks
from mechunlearn.localization.path_patching.patch import path_patch as path_patch
from mechunlearn.localization.probing.linear_probes import fit_probes as fit_probes
from mechunlearn.localization.probing.probe import probe as probe
from mechunlearn.localization.tracing.trace import causal_trace as causal_trace
from mechunlearn.localization.tracing.trace import noised_embeddings as noised_embeddings
from mechunlearn.localization.tracing.trace import trace_hooks as trace_hooks
from mechunlearn.localization.verify import verify as verify
from mechunlearn.models.hooked import HookedModel as HookedModel
from mechunlearn.models.scoring.scorer import score as score
from mechunlearn.models.scoring.scorer import validate as validate

__all__ = [
    "ClassResult",
    "CountCurve",
    "Delta",
    "EdgeScores",
    "Edit",
    "EditSequence",
    "Engine",
    "Fact",
    "Facts",
    "History",
    "Hook",
    "HookedModel",
    "Limits",
    "Localization",
    "MeanAblation",
    "Noise",
    "Optimizer",
    "OtherSubject",
    "Recipe",
    "Report",
    "Resample",
    "Scores",
    "Site",
    "SizeCurve",
    "Stop",
    "ZeroAblation",
    "ablate",
    "activation_patch",
    "attacks",
    "attribution",
    "audit",
    "cache",
    "causal_trace",
    "closed_form",
    "count_curve",
    "diff",
    "direct_logit_attribution",
    "edge_attribution",
    "edit",
    "edit_sequence",
    "edit_size_curve",
    "fact_lookup",
    "fit_probes",
    "forget_class",
    "logit_lens",
    "noise",
    "noised_embeddings",
    "objectives",
    "paired_difference",
    "patch",
    "patch_middle",
    "path_hooks",
    "path_lookup",
    "path_patch",
    "probe",
    "refit",
    "score",
    "steer",
    "trace_hooks",
    "validate",
    "verify",
    "whp",
    "world",
]
