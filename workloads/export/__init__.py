"""Checkpoints of the trainer as other programs read them: `python -m workloads.export`."""
