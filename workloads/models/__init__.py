"""The decoder-only language model and its attention kinds."""
