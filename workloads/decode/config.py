"""What this rank generates: the job in run.json, its prompts, its cache policy, and where its code comes from.

Refusals are `SpecError`s that `workloads.decode.__main__` turns into exit 77: a restart cannot help.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kernels.decoupled.policy import KVCachePolicy
from workloads.contract.config.job import DecodeSpec, ModelSpec
from workloads.contract.errors import SpecError
from workloads.contract.files import read_bytes_bounded
from workloads.contract.prompts import MAX_BYTES, Conversations, conversations_of
from workloads.judging.origin import read_origin
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class DecodeConfig:
    asked: DecodeSpec
    policy: KVCachePolicy | None  # of backend `decoupled`
    model: ModelSpec  # of random weights
    conversations: Conversations
    commit: str  # of the code that generates; the tree's hash where it came from no repository
    dirty: bool
    command: str  # what a person typed
    pod: str

    @property
    def turns(self) -> list[tuple[int, int]]:
        """(conversation, turn) of every prompt, from 0, in the order in which they are answered."""
        return [(c, t) for c, prompts in enumerate(self.conversations) for t in range(len(prompts))]


def load(env: RankEnv) -> DecodeConfig:
    """The job of the run directory. SpecError when it, or its file of prompts, is missing or wrong."""
    found = read_origin(env, "E-DECODE-002")
    asked = found.job.decode
    if isinstance(asked.prompts, str):
        conversations = _read(asked.prompts)
    else:
        conversations = [[one] if isinstance(one, str) else list(one) for one in asked.prompts]
    policy = None if asked.kv_policy is None else KVCachePolicy.parse(asked.kv_policy)  # the job's model looked at it
    return DecodeConfig(
        asked, policy, found.job.model, conversations,
        found.commit, found.dirty, found.command, found.pod,
    )  # fmt: skip


def _read(name: str) -> Conversations:
    path = Path(name).expanduser().absolute()
    try:
        return conversations_of(read_bytes_bounded(path, MAX_BYTES), path.name)
    except (OSError, ValueError) as e:
        said = e.strerror or "it cannot be read" if isinstance(e, OSError) else f"{e}"
        raise SpecError(
            "E-DECODE-003", f"the prompts cannot be read: {said}", where=f"decode.prompts ({path})",
            expected="text, a prompt a line; or *.json, a list of conversations, each a list of prompts",
            fix="orch decode --prompts FILE   (a file here, which travels with the job)",
        ) from e  # fmt: skip
