"""Measuring the kernels: bandwidth of this machine, every peer that imports, ours, in one process and one run.

`python -m kernels.bench` prints a table and appends rows; it times nothing that it has not found right. Nothing but a
person, a test and `tests/gpu_kernels.sh` calls it.
"""
