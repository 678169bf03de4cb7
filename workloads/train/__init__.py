"""The training program of kind `train`: `python -m workloads.train`, one process a rank."""
