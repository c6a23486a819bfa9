"""Values and tools that know no model."""
