"""The losses that an edit minimises: frozen dataclasses that declare which model outputs they read."""

from mechunlearn.editing.objectives import hidden_losses as hidden_losses
from mechunlearn.editing.objectives import losses as losses
from mechunlearn.editing.objectives.ascent import GradientAscent as GradientAscent
from mechunlearn.editing.objectives.ascent import GradientDifference as GradientDifference
from mechunlearn.editing.objectives.distillation import CEU as CEU
from mechunlearn.editing.objectives.distillation import UNDIAL as UNDIAL
from mechunlearn.editing.objectives.likelihood import Forget as Forget
from mechunlearn.editing.objectives.likelihood import Inject as Inject
from mechunlearn.editing.objectives.masking import WeightMask as WeightMask
from mechunlearn.editing.objectives.preference import DPO as DPO
from mechunlearn.editing.objectives.preference import NPO as NPO
from mechunlearn.editing.objectives.preference import AltPO as AltPO
from mechunlearn.editing.objectives.preference import SimNPO as SimNPO
from mechunlearn.editing.objectives.primal_dual import PDU as PDU
from mechunlearn.editing.objectives.relabel import Relabel as Relabel
from mechunlearn.editing.objectives.representation import RMU as RMU
from mechunlearn.editing.objectives.representation import CircuitBreaker as CircuitBreaker
from mechunlearn.editing.objectives.requests import Masking as Masking
from mechunlearn.editing.objectives.requests import Objective as Objective
from mechunlearn.editing.objectives.requests import Outputs as Outputs
from mechunlearn.editing.objectives.requests import Request as Request
from mechunlearn.editing.objectives.requests import Sampled as Sampled
from mechunlearn.editing.objectives.requests import Stateful as Stateful
from mechunlearn.editing.objectives.retain_terms import RetainTerms as RetainTerms
from mechunlearn.editing.objectives.retain_terms import Weights as Weights
from mechunlearn.editing.objectives.weighted import WGA as WGA
from mechunlearn.editing.objectives.weighted import SatImp as SatImp

__all__ = [
    "CEU",
    "DPO",
    "NPO",
    "PDU",
    "RMU",
    "UNDIAL",
    "WGA",
    "AltPO",
    "CircuitBreaker",
    "Forget",
    "GradientAscent",
    "GradientDifference",
    "Inject",
    "Masking",
    "Objective",
    "Outputs",
    "Relabel",
    "Request",
    "RetainTerms",
    "Sampled",
    "SatImp",
    "SimNPO",
    "Stateful",
    "WeightMask",
    "Weights",
    "hidden_losses",
    "losses",
]
