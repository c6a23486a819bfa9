"""Train an edit: one loop for every objective, confined to a localization."""
