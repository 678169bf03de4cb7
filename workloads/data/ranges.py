"""A file of the hub, read by ranges over HTTP. Nothing is kept on disk and nothing tried again. Called by
`workloads.data.hub`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from workloads.contract.errors import LocalError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MIN_RANGE_BYTES = 256 << 10
"""asked for at least, so that a footer is one request"""


def library() -> Any:
    """`huggingface_hub`. LocalError when it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as e:
        raise LocalError(
            "E-DATA-013", "source hub needs the package huggingface_hub", fix="pip install huggingface_hub datasets"
        ) from e
    return huggingface_hub


class RangeFile(io.RawIOBase):
    """A file behind a URL, read by ranges. OSError for every answer that is not what was asked for."""

    def __init__(self, url: str, size: int, timeout_s: float) -> None:
        self._url, self._size, self._timeout_s = url, size, timeout_s
        self._at = 0
        self._held, self._held_at = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._range(self._at, min(len(view), max(0, self._size - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._size - self._at)
        data = self._range(self._at, left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def _range(self, start: int, length: int) -> bytes:
        if not length:
            return b""
        if not (self._held_at <= start and start + length <= self._held_at + len(self._held)):
            low = start
            if length < MIN_RANGE_BYTES and start + MIN_RANGE_BYTES > self._size:
                low = max(0, self._size - MIN_RANGE_BYTES)  # a footer, and what is read before it next
            high = min(self._size, max(start + length, low + MIN_RANGE_BYTES))
            self._held, self._held_at = self._fetch(low, high), low
        return self._held[start - self._held_at : start - self._held_at + length]

    def _fetch(self, low: int, high: int) -> bytes:
        hub = library()
        headers = {"Range": f"bytes={low}-{high - 1}", "Accept-Encoding": "identity"}
        if token := hub.get_token():
            headers["Authorization"] = f"Bearer {token}"
        parts, got = [], 0
        try:
            with hub.utils.get_session().stream(
                "GET", self._url, headers=headers, timeout=self._timeout_s, follow_redirects=True
            ) as answer:
                if answer.status_code not in (200, 206) or (answer.status_code == 200 and low):
                    raise HubBusyError(answer.status_code, answer.headers.get("retry-after"))
                for chunk in answer.iter_bytes():
                    parts.append(chunk)
                    got += len(chunk)
                    if got >= high - low:
                        break
        except OSError:
            raise
        except Exception as e:  # the HTTP library's own tree
            raise OSError(f"{type(e).__name__}: {e}") from e
        if got < high - low:
            raise OSError(f"the answer ended after {got} of {high - low} bytes")
        return b"".join(parts)[: high - low]


class HubBusyError(OSError):
    """The hub answered with a status that is no data; `wait_s` is what it asked for."""

    def __init__(self, status: int, retry_after: str | None) -> None:
        super().__init__(f"HTTP status {status}" + (f", try again after {retry_after} s" if retry_after else ""))
        self.status = status
        self.wait_s = float(retry_after) if retry_after and retry_after.isdigit() else None
