"""A Dagster project with what people write around pools, op tags and executors."""
