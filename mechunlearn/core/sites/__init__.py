"""Sites of a model: one ``Site``, a ``Localization`` of several, and all ``ModelSites``."""
