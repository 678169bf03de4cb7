"""The task of a run of kind `data`, its beats and its verdict. Called by `workloads.dataprep.__main__`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from workloads.contract.config.job import JobSpec
from workloads.contract.errors import OrchError, RemoteError
from workloads.contract.exitcodes import RankExit
from workloads.contract.files import atomic_write_json
from workloads.contract.records import RunVerdict, as_wire
from workloads.contract.states import Phase
from workloads.data.stream import Batch
from workloads.dataprep.check import Reading, check
from workloads.dataprep.pool import StoppedError
from workloads.dataprep.prepare import Asked, Outcome, Progress, prepare
from workloads.judging.origin import Origin
from workloads.runtime import Run
from workloads.runtime.fence import check_epoch
from workloads.runtime.rankenv import RankEnv

GO, NO_GO = "go", "no-go"


def carry_out(env: RankEnv, run: Run, origin: Origin) -> int:
    """The exit code."""
    run.phase(Phase.LOADING)
    work = _Work(env, run, origin)
    return work.prepare() if origin.job.task.kind == "prepare" else work.check()


class _Work:
    def __init__(self, env: RankEnv, run: Run, origin: Origin) -> None:
        self.env, self.run, self.origin = env, run, origin
        self.job: JobSpec = origin.job
        self.began = time.monotonic()
        self.tokens = 0
        self._first: tuple[float, int] | None = None

    def check(self) -> int:
        seen = check(self.job, self._read, lambda: self.run.asked_to_halt)
        if self.run.asked_to_halt:
            return self.run.halted(self.tokens)
        return self._conclude(seen.why, f"{seen.batches} batches from {', '.join(seen.sources)}", seen.as_json())

    def _read(self, seen: Reading, batch: Batch, waited: float) -> None:
        self.tokens += int(batch.x_BT.size)
        steps = None if self.job.task.batches is None else self.job.task.batches * int(batch.x_BT.size)
        self.run.beat(
            step=self.tokens, steps=steps, documents=seen.documents, toks_per_s=seen.rate(seen.tokens) or None,
            dt_fetch_s=waited, data_source=batch.source,
        )  # fmt: skip

    def prepare(self) -> int:
        asked, out = self.job.task, Path(self.job.task.out or "").expanduser().absolute()
        words = Asked(self.job.data, out, asked.workers, asked.max_tokens)
        try:
            made = prepare(words, self._made, lambda: self.run.asked_to_halt)
        except StoppedError:
            print(f"halted: {self.tokens} tokens; finished parts are kept", flush=True)
            return self.run.halted(self.tokens)
        except RemoteError as e:  # a restart may find the source again
            print(e.render(), file=sys.stderr, flush=True)
            return 1
        except RuntimeError as e:
            print(f"error: {e}", file=sys.stderr, flush=True)
            return self.run.halted(self.tokens) if self.run.asked_to_halt else 1
        except OrchError as e:
            print(e.render(), file=sys.stderr, flush=True)
            return self._conclude(e.what, "", {"error": {**e.as_dict(), "text": e.render()}, "out": str(out)})
        self.tokens = made.index.tokens
        words_ = f"{made.index.tokens} tokens of {made.index.documents} documents in {len(made.index.shards)} shards"
        return self._conclude("", words_ + (", there already" if made.found else ""), self._facts(made, out))

    def _made(self, done: Progress) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done.tokens)
        since, before = self._first
        rate = (done.tokens - before) / (now - since) if now > since and done.tokens > before else None
        self.tokens = done.tokens
        steps = max(done.tokens, round(done.tokens / done.fraction)) if done.fraction and done.tokens else None
        self.run.beat(step=done.tokens, steps=steps, documents=done.documents, toks_per_s=rate)

    def _facts(self, made: Outcome, out: Path) -> dict[str, Any]:
        index, took = made.index, time.monotonic() - self.began
        return {
            "out": str(out), "tokens": index.tokens, "documents": index.documents, "shards": len(index.shards),
            "bytes": sum(index.sizes().values()), "tokenizer": index.tokenizer, "vocab": index.vocab,
            "dtype": index.dtype, "fingerprint": index.fingerprint, "there_already": made.found,
            "parts": made.parts, "kept_parts": made.kept_parts, "workers": made.workers, "seconds": took,
            "source": index.source.get("name"), "error": None,
        }  # fmt: skip

    def _conclude(self, wrong: str, right: str, facts: dict[str, Any]) -> int:
        """The verdict, written last of all."""
        check_epoch(self.env)
        about = {"task": self.job.task.kind, "commit": self.origin.commit, "dirty": self.origin.dirty}
        verdict = RunVerdict(
            self.env.run_id, self.env.attempt, NO_GO if wrong else GO, wrong or right, time.time(),
            data={**facts, **about, "command": self.origin.command},
        )  # fmt: skip
        atomic_write_json(self.env.run.verdict, as_wire(verdict))
        print(f"{verdict.verdict}: {verdict.why}", flush=True)
        self.run.done(self.tokens)
        return int(RankExit.NO_GO if wrong else RankExit.DONE)
