"""Ranks of the standard library that beat as the contract says, for tests of health."""

from __future__ import annotations

BEATER = """
import json, math, os, pathlib, signal, sys, time
run, rank = pathlib.Path(os.environ['ORCH_RUN_DIR']), int(os.environ['RANK'])
attempt, world = int(os.environ['ORCH_ATTEMPT']), int(os.environ['WORLD_SIZE'])
beats, seq = open(run / f'heartbeat_rank{rank}.jsonl', 'a', buffering=1), 0

def beat(msg, **more):
    global seq
    row = dict(v=1, seq=seq, ts=time.time(), msg=msg, rank=rank, world_size=world, attempt=attempt, **more)
    beats.write(json.dumps(row) + chr(10))
    seq += 1

def step(n, **more):
    time.sleep(0.02)
    beat('progress', **{'step': n, 'loss': 2.5, 'step_time_s': 0.02, 'toks_per_s': 100.0, **more})

def wait_for_ever():
    while True:
        time.sleep(600)
"""
"""`beat(phase)`, `step(n, loss=...)` and `wait_for_ever()` for the code that follows."""

SAVED = """
saved = run / 'checkpoints' / 'saved'
first = int(saved.read_text()) if saved.exists() and saved.read_text() else 0
"""
"""A rank that goes on from `first`, the step it saved last."""
