"""Places in a model: one ``Site``, a ``Localization`` of several, and all ``ModelSites`` of a model."""

from mechunlearn.sites.localization import Localization
from mechunlearn.sites.site import Site
from mechunlearn.sites.universe import ModelSites, Shape

__all__ = ["Localization", "ModelSites", "Shape", "Site"]
