"""Orch's own parts for a bare pod as one zip, known by its hash: `pods.remote`, what it imports, and nothing else.

Standard library only, some 60 kB. Sent once to a pod by `pods.pod`; the packages for keeper, supervisor and ranks
travel separately, as a content-addressed tree (`pods.tree`).
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDERS = ("pods/remote", "pods/keeper", "workloads/contract")
FILES = ("pods/__init__.py", "workloads/__init__.py", "pods/tree.py", "pods/clusterid.py")
_MAIN = "import sys\nfrom pods.remote.__main__ import main\nsys.exit(main(sys.argv))\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Bundle:
    digest: str  # 16 hex digits over names and contents
    data: bytes


@cache
def remote_bundle() -> Bundle:
    """The zip of this very version; the same bytes on every machine."""
    root = Path(__file__).resolve().parent.parent
    paths = {p for folder in FOLDERS for p in (root / folder).glob("*.py")} | {root / f for f in FILES}
    texts = {p.relative_to(root).as_posix(): p.read_bytes() for p in paths if p.exists()} | {
        "__main__.py": _MAIN.encode()
    }
    digest = hashlib.sha256()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        for name in sorted(texts):
            digest.update(f"{name}\0{len(texts[name])}\0".encode() + texts[name])
            z.writestr(zipfile.ZipInfo(name, _EPOCH), texts[name], zipfile.ZIP_DEFLATED)
    return Bundle(digest.hexdigest()[:16], buffer.getvalue())
