"""The secrets of a run: `{name: value}` in a file of mode 0600, written at launch and read where the run lies.

The shim adds them to its rank's environment; the operator asks for them to keep them out of what is shown. They are in
no order, record, event, argument or log of ours. Standard library only.
"""

from __future__ import annotations

import json
import os
import stat

from workloads.contract.files import MAX_JSON_BYTES
from workloads.contract.rundir import RunDir


def read_secrets(run: RunDir) -> dict[str, str]:
    """{} when the run has none. ValueError, which never quotes a value, for a file that is not this user's own, that
    others may read, or that holds anything else; OSError as usual.
    """
    path = run.secrets
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return {}
    with os.fdopen(fd, "rb") as f:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or st.st_uid != os.getuid() or st.st_mode & 0o077:
            raise ValueError(f"{path} must be a file of this user's own with mode 0600")
        data = f.read(MAX_JSON_BYTES + 1)
    try:
        row = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError(f"{path} holds no JSON") from None  # whose error would quote what it holds
    if not isinstance(row, dict) or not all(isinstance(v, str) and "\0" not in v for v in row.values()):
        raise ValueError(f"{path} holds something other than texts by name")
    return row
