"""Places in a model: one ``Site``, a ``Localization`` of several, and all ``ModelSites`` of a model."""
