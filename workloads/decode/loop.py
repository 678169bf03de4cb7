"""Turn by turn: answer, write the row, beat; stop when asked to; at the end the summary.

Turns that have a row are not made again: what they said is read back into the cache, and the conversation goes on. A
turn that was begun and not finished (a halt, a death) is made again, with the same draws. Called by
`workloads.decode.__main__`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from kernels.decoupled.policy import storage_slots
from workloads.contract.errors import SpecError
from workloads.contract.exitcodes import RankExit
from workloads.contract.states import Phase
from workloads.decode import figures
from workloads.decode.config import DecodeConfig
from workloads.decode.place import Place, basis
from workloads.decode.progress import HaltAsked, Progress
from workloads.decode.result import Turn, row_of, summarize
from workloads.decode.speakers import OnCache, Speaker, speaker_of
from workloads.decode.weights import Loaded
from workloads.judging.book import Book, Files, Key
from workloads.runtime import Run
from workloads.runtime.fence import check_epoch
from workloads.runtime.rankenv import RankEnv

SUITE = "decode"
Prompts = list[list[list[int]]]
"""tokens of every prompt, by conversation and turn"""


def decode_all(env: RankEnv, run: Run, config: DecodeConfig, place: Place, loaded: Loaded) -> int:
    """The exit code. SpecError for prompts and weights that do not fit; OSError when nothing can be written."""
    prompts = _tokens(config, loaded)
    book = Book(env, files_of(env), basis(config, place, loaded.origin))
    desk = _Desk(run, config, place, loaded, book, prompts)
    book.keep([_key(c, t) for c, t in config.turns])
    if book.rows:
        print(f"going on behind the {len(book.rows)} of {len(config.turns)} turns that are done", flush=True)
    try:
        for conversation in range(len(prompts)):
            desk.hold(conversation)
    except HaltAsked:
        book.rest()
        print(f"halted: {len(book.rows)} of {len(config.turns)} turns are done", flush=True)
        return run.halted(desk.steps_of(len(book.rows)), checkpoint=env.run.decode_rows)
    book.rest()
    check_epoch(env)
    rows = [book.rows[_key(c, t)] for c, t in config.turns]
    print(summarize(env, config, place, loaded, rows), flush=True)
    steps = desk.steps_of(len(rows))
    run.done(steps, steps=steps)
    return int(RankExit.DONE)


def files_of(env: RankEnv) -> Files:
    run = env.run
    return Files(run.decode_rows, run.decode_basis, run.decode_turn, run.archived_decode_rows(env.attempt), "turn")


def _key(conversation: int, turn: int) -> Key:
    return SUITE, f"{conversation + 1}.{turn + 1}"


def _tokens(config: DecodeConfig, loaded: Loaded) -> Prompts:
    found = [
        [loaded.tokenizer.encode(text, first=not turn) for turn, text in enumerate(texts)]
        for texts in config.conversations
    ]
    for c, t in config.turns:
        ids = found[c][t]
        if not ids or max(ids) >= loaded.model.vocab:
            why = f"has token {max(ids)}, beyond the model's {loaded.model.vocab}" if ids else "has no token"
            raise SpecError(
                "E-DECODE-014", f"turn {t + 1} of conversation {c + 1} {why}", where="decode.prompts",
                value=config.conversations[c][t], expected=f"text for the tokenizer {loaded.tokenizer.name}",
            )  # fmt: skip
    return found


class _Desk:
    def __init__(
        self, run: Run, config: DecodeConfig, place: Place, loaded: Loaded, book: Book, prompts: Prompts
    ) -> None:
        self._run, self._config, self._place, self._loaded = run, config, place, loaded
        self._book, self._prompts, self._warm = book, prompts, False
        self._progress = Progress(run, place.device, self.steps_of(len(config.turns)), config.asked.max_new_tokens)

    def steps_of(self, turns: int) -> int:
        return turns * self._config.asked.repeats * self._config.asked.max_new_tokens

    def hold(self, conversation: int) -> None:
        """Answer what of this conversation has no row. HaltAsked when somebody wants the run to stop."""
        prompts = self._prompts[conversation]
        if all(_key(conversation, t) in self._book.rows for t in range(len(prompts))):
            return
        speaker = self._speaker(prompts)
        earlier: list[list[int]] = []
        for t, prompt in enumerate(prompts):
            if self._run.asked_to_halt:
                raise HaltAsked
            row = self._book.rows.get(_key(conversation, t))
            if row is None:
                turn = self._answer(speaker, conversation, t, earlier)
                earlier += [prompt, turn.said.ids]
            else:
                speaker.recall([*prompt, *row["ids"]])
                earlier += [prompt, row["ids"]]

    def _speaker(self, prompts: Sequence[Sequence[int]]) -> Speaker:
        room = storage_slots(sum(map(len, prompts)) + len(prompts) * self._config.asked.max_new_tokens)
        try:
            if not self._warm and self._config.asked.backend != "full":
                self._run.phase(Phase.COMPILING)
                OnCache(self._config, self._loaded, room, None).warm_up(prompts[0])
            self._warm = True
            return speaker_of(self._config, self._loaded, room, self._progress)
        except (ValueError, torch.OutOfMemoryError) as e:
            raise _refused(e, f"a conversation of {room} tokens") from e

    def _answer(self, speaker: Speaker, conversation: int, turn: int, earlier: Sequence[Sequence[int]]) -> Turn:
        key = _key(conversation, turn)
        deaths = self._book.begin(key)
        if deaths >= Book.DEATHS:
            raise SpecError(
                "E-DECODE-016", f"{deaths} processes in a row ended in turn {key[1]}", where="decode.prompts",
                value=self._config.conversations[conversation][turn], fix="orch logs RUN   (how they ended)",
            )  # fmt: skip
        began, done = time.perf_counter(), len(self._book.rows)
        prompt, seed = self._prompts[conversation][turn], self._config.asked.seed + 1000 * conversation + turn
        try:
            figures.forget_peak(self._place.device)
            said = speaker.answer(prompt, seed, self.steps_of(done))
            made = Turn(conversation, turn, prompt, earlier, said, speaker.step, speaker.cache_bytes)
            row = row_of(key, made, self._config, self._place, self._loaded, self._progress.samples)
        except (ValueError, torch.OutOfMemoryError) as e:
            raise _refused(e, f"turn {key[1]}") from e
        self._book.add(key, row)
        print(f"turn {done + 1}/{len(self._config.turns)}  {key[1]}  {words(row)}", flush=True)
        self._run.beat(step=self.steps_of(done + 1), step_time_s=time.perf_counter() - began)
        return made


def words(row: dict[str, object]) -> str:
    ratio = row.get("ratio")
    share = f", {100 * ratio:.0f} % of the read limit" if isinstance(ratio, float) else ""
    return f"{row['tokens']} tokens, {row['tokens_per_s']:.4g} tokens/s{share}"


def _refused(e: Exception, what: str) -> SpecError:
    if isinstance(e, torch.OutOfMemoryError):
        said = str(e).split(". ")[0]
        return SpecError(
            "E-DECODE-015", f"the device has not enough memory for {what}: {said}", where="decode",
            fix="fewer tokens (--max-new-tokens, shorter prompts), or --kv-policy with fewer bits",
        )  # fmt: skip
    return SpecError("E-DECODE-014", f"{what} cannot be computed: {e}", where="decode")
