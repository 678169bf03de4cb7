"""The keeper: a small process on each pod that keeps orch's own parts there alive. Standard library only.

It starts and restarts this pod's Ray node, submits a supervisor for every run that has not ended, starts the shims,
carries out dump requests, finishes the records of lost shims and guards the memory of GPUs and machine. It holds no
state that is not in files: killed at any moment and started again, it goes on. Any contact of `orch` with the pod
starts it when it is missing.
"""
