"""Attention with a key/value cache: `api` (functions), `plan` (a decode step for graphs), `cache` (what models keep).

Imports nothing by itself: `kernels.kv_decode.api` needs torch, and Triton only when a kernel is launched. README.md has
the maths, the layout, examples and measurements.
"""
