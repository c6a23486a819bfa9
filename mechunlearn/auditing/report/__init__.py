"""The result of an audit: a value with a table, figures and a verdict in words."""
