"""What an audit found, as a value with a table, pictures and a verdict in words."""
