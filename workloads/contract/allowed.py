"""What a person may say with a resume: in which fields the checkpoint may differ from the job, and which one it is.

`train.lr` and the like are fields of the config; `corpus` is the text that was trained on; `all` is everything. Ranks
are told in the environment. Standard library only; used by the operator's side, the supervisor and ranks.
"""

from __future__ import annotations

import re
from collections.abc import Collection

ALLOWED = "ORCH_ALLOW_CONFIG_CHANGE"
"""environment variable of a rank: such names, comma between"""
RESUME_FROM = "ORCH_RESUME_FROM"
"""environment variable of a rank: the name of the checkpoint that the newest resume asked for"""
ALL, CORPUS = "all", "corpus"
BOUND_PARTS = ("model.", "data.", "train.")
"""of a job: what a checkpoint binds are fields of these, named by two words"""
_NAME = re.compile(r"(model|data|train)(\.[a-z][a-z0-9_]{0,63}){1,4}|corpus|all", re.ASCII)


def is_allowable(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_allowed(name: str, allowed: Collection[str]) -> bool:
    return name in allowed or ALL in allowed
