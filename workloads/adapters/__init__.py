"""The few lines for trainers of others: Hugging Face `accelerate` and `transformers.Trainer`.

A plain PyTorch script needs none of this: `from workloads.runtime import Run` (see `workloads.runtime.script`).
"""
