"""Settings: schema, loading, comparison."""
