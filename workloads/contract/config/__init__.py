"""Configuration models (pydantic): the job file and the inventory. Frozen, extra keys forbidden, strict types."""
