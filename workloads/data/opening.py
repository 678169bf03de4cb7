"""The documents that a job's stream names, opened and probed: which files, read how. No tokens and no order here.

    parquet, hub        Parquet by row groups (`workloads.data.parquet`)
    jsonl, hub          JSON lines by byte ranges (`workloads.data.jsonl`)
    hub                 everything else that `datasets` parses as rows (`workloads.data.rowfiles`)

Called by `workloads.data.feeds` and `workloads.dataprep.origins`.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from workloads.contract.config.job import DataSpec
from workloads.contract.errors import SpecError
from workloads.data import hub, jsonl, parquet
from workloads.data.asked import Once, OncePerPod, at_once
from workloads.data.blocks import BlockSource, SourceGone
from workloads.data.files import DataFile, local_files
from workloads.data.hub import Chosen
from workloads.data.reading import Patience
from workloads.data.rowfiles import RowFiles

PROBED_BLOCKS = 64
HUB_AHEAD = 8
HEAD_BYTES = 64 << 10
T = TypeVar("T")
ASKED_S_A_FILE = 0.5
"""how much longer the footers of a data set may take another process of the pod, for each of its files"""


def preload(data: DataSpec) -> None:
    """Import what the source needs before any deadline runs."""
    if data.source == "hub":
        hub.preload()
    if data.source != "jsonl":
        parquet.preload()


def open_source(data: DataSpec) -> BlockSource | RowFiles:
    """The documents of a stream, probed for text. OrchError when there are none; SourceGone when they do not come now.

    Every read has its own deadline: a data set of thousands of files may take minutes to open. A hub's is read at
    `data.dataset.revision`, which should be a commit (`workloads.train.pin`): what is asked about it, one process of
    the pod asks.
    """
    patience = Patience(data.read_timeout_s, data.read_tries)
    if data.source == "hub" and data.dataset is not None:
        if data.dataset.revision == hub.NEVER_REACHED:
            raise SourceGone("hub", "it could not be asked when the run began")
        listing = hub.list_files(data.dataset, patience)
        return _Opening("hub", data, remote=bool(listing.commit)).open(hub.chosen(data.dataset, listing))
    endings = jsonl.ENDINGS if data.source == "jsonl" else parquet.ENDINGS
    path = data.path or ""
    files = patience.call(partial(local_files, path, endings), data.source, path)
    opening = _Opening(data.source, data)
    return opening.parquet(files) if data.source == "parquet" else opening.lines(files)


def open_cached(data: DataSpec) -> BlockSource | RowFiles:
    """The same from the hub's cache on this pod. LocalError when it holds nothing of it."""
    assert data.dataset is not None
    folder = hub.cached_folder(data.dataset, data.dataset.revision)
    spec = data.dataset.model_copy(update={"repo": str(folder)})
    listing = hub.list_files(spec, Patience(data.read_timeout_s, data.read_tries))
    return _Opening("cache", data).open(hub.chosen(spec, listing))


class _Opening:
    """How the files of one source are opened. `remote`: on a hub, at a commit."""

    def __init__(self, name: str, data: DataSpec, *, remote: bool = False) -> None:
        self.name, self.data, self.remote = name, data, remote
        self.patience = Patience(data.read_timeout_s, data.read_tries)
        self.ahead = HUB_AHEAD if remote else 1

    def open(self, chosen: Chosen) -> BlockSource | RowFiles:
        if chosen.rows is None:
            return self.parquet(chosen.files)
        if chosen.lines and self._is_lines(chosen.files):
            return self.lines(chosen.files)
        self._tell_empty(chosen.files)
        source = RowFiles(
            self.name, chosen.files, chosen.rows, text_field=self.data.text_field, shards=self.data.shards,
            patience=self.patience, ahead=self.ahead,
        )  # fmt: skip
        if not self.remote:
            self._probe(source.head, source)  # its reads have deadlines of their own
        return source

    def parquet(self, files: Sequence[DataFile]) -> BlockSource:
        self._tell_empty(files)
        source = parquet.ParquetRows(
            self.name, files, text_field=self.data.text_field, shards=self.data.shards, ahead=self.ahead,
            patience=self.patience, once=self._once(["footers", self.data.text_field], files, ASKED_S_A_FILE),
        )  # fmt: skip
        return self._probed(source)

    def lines(self, files: Sequence[DataFile]) -> BlockSource:
        self._tell_empty(files)
        try:
            source = jsonl.JsonLines(
                self.name, files, text_field=self.data.text_field, shards=self.data.shards, ahead=self.ahead,
                patience=self.patience, once=self._once(["packed"], files),
            )  # fmt: skip
        except ValueError as e:
            raise SpecError(
                "E-DATA-015", str(e), where=self.data.path or self.name,
                fix="gunzip them, or read the folder as a data set: data: {source: hub, dataset: {repo: FOLDER}}",
            ) from e  # fmt: skip
        return self._probed(source)

    def _once(self, question: Sequence[str], files: Sequence[DataFile], s_a_file: float = 0.0) -> Once:
        """`ask` itself for local files; for a hub's, asked by one process of the pod."""
        spec = self.data.dataset
        if not self.remote or spec is None or not hub.is_commit(spec.revision):
            return at_once
        asks: OncePerPod = hub.asked_once(spec, self.patience.worst_s() + hub.LONGER_S)
        words = [*question, *(f.name for f in files)]

        def once(ask: Callable[[], Any], read: Callable[[Any], T], /) -> T:
            return asks.ask(words, ask, read, s_a_file * len(files))

        return once

    def _is_lines(self, files: Sequence[DataFile]) -> bool:
        """Whether `.json` is JSON lines: one object on its first line."""
        first = next((f for f in files if f.size and f.name.endswith(".json")), None)
        if first is None:
            return True

        def look() -> bool:
            with first.open() as f:
                line = f.read(HEAD_BYTES).lstrip().split(b"\n", 1)
            return _is_object(line[0]) if len(line) > 1 or first.size <= HEAD_BYTES else line[0].startswith(b"{")

        def ask() -> bool:
            return self.patience.call(look, self.name, first.name)

        return self._once(["lines"], files)(ask, bool)

    def _probed(self, source: BlockSource) -> BlockSource:
        if not self.remote:
            self.patience.call(partial(self._probe, source.read, source), self.name, "its first documents")
        return source

    def _probe(self, head: Callable[[int], Sequence[str | None]], source: BlockSource | RowFiles) -> None:
        """SpecError when the first documents, as many as there are in some blocks, hold no text at all."""
        for block in range(min(PROBED_BLOCKS, source.blocks)):
            if any(head(block)):
                return
        first = source.left_out.first[0] if source.left_out.first else "the files hold no documents"
        fix = f"head -c 300 {shlex.quote(str(self.data.path))}" if ": no JSON" in first else "set data.text_field"
        raise SpecError(
            "E-DATA-016", f"no document has text; {first}", where=self.data.path or source.name,
            value=self.data.text_field, expected="documents with text in the field that data.text_field names",
            fix=fix,
        )  # fmt: skip

    def _tell_empty(self, files: Sequence[DataFile]) -> None:
        for file in files:
            if not file.size:
                print(f"warning: data: {self.name}: {file.name} is empty", file=sys.stderr, flush=True)


def _is_object(line: bytes) -> bool:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict)
