"""Which part of the decoupled cache is held in which format: one line of text, parsed, checked and priced in bytes.

    ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128

ksem, kgeo and v are q4_0@32, q8_0@32 or fp16; resid is the number of newest tokens kept in fp16 beside them. All four
must be there, once, in any order: nothing is assumed. `str` gives the line above, which parses to the same policy.
Called by `cache`, configuration and the benches; it touches no tensor.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Final

from kernels.decoupled.codec import CODES, GROUP, code_bytes, groups_of

EXAMPLE: Final = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"
FORMATS: Final = (*(f"{kind}@{GROUP}" for kind in CODES), "fp16")
KEYS: Final = ("ksem", "kgeo", "v", "resid")
VALUE_BYTES: Final = 2
"""An fp16 value: in an fp16 part, and in the tail."""
SCALE_BYTES: Final = 2
SLOTS: Final = 64
"""Storage of a part is rounded up to a multiple of this many tokens: every row of scales starts on 16 bytes."""


@dataclass(frozen=True)
class PartFormat:
    """How one part is held. kind: q4_0, q8_0 or fp16; group: values a scale (32; of no meaning for fp16)."""

    kind: str
    group: int = GROUP

    def __post_init__(self) -> None:
        if self.kind not in (*CODES, "fp16") or self.group != GROUP:
            raise ValueError(_no_format(f"{self.kind}@{self.group}"))

    @classmethod
    def parse(cls, text: str) -> PartFormat:
        """One of q4_0@32, q8_0@32, fp16. ValueError with the nearest of them."""
        if text not in FORMATS:
            raise ValueError(_no_format(text))
        return cls(text.partition("@")[0])

    def __str__(self) -> str:
        return self.kind if self.kind == "fp16" else f"{self.kind}@{self.group}"

    def bytes(self, dim: int) -> int:
        """Bytes of one token of one head with `dim` values, scales and the padding of the last group included."""
        groups = groups_of(dim)
        if self.kind == "fp16":
            return dim * VALUE_BYTES
        return code_bytes(CODES[self.kind], dim) + groups * SCALE_BYTES

    def bits_per_value(self, dim: int = GROUP) -> float:
        """Stored bits a value: 4.5, 8.5 or 16 where `dim` is a multiple of 32, more where groups are padded."""
        return 8 * self.bytes(dim) / dim


@dataclass(frozen=True)
class KVCachePolicy:
    """The formats of the three parts, and how many of the newest tokens stay in fp16."""

    ksem: PartFormat
    kgeo: PartFormat
    v: PartFormat
    resid: int

    def __post_init__(self) -> None:
        if isinstance(self.resid, bool) or not isinstance(self.resid, int) or self.resid < 0:
            raise ValueError(f"resid={self.resid!r} must be a whole number of tokens, 0 or more, as in {EXAMPLE!r}")

    @classmethod
    def parse(cls, text: str) -> KVCachePolicy:
        """The policy that `text` names. ValueError with every mistake, the nearest right form, and a full example."""
        found: dict[str, str] = {}
        mistakes: list[str] = []
        for item in text.split(","):
            key, equals, value = (word.strip() for word in item.partition("="))
            if not equals:
                mistakes.append(f"{item.strip()!r} is not KEY=VALUE" if item.strip() else "an empty item")
            elif key not in KEYS:
                mistakes.append(f"{key!r} is no key{_meant(key, KEYS)} (keys: {', '.join(KEYS)})")
            elif key in found:
                mistakes.append(f"{key!r} is given twice, {found[key]!r} and {value!r}")
            else:
                found[key] = value
                mistakes.extend(_wrong(key, value))
        missing = [key for key in KEYS if key not in found]
        if missing:
            mistakes.append(f"without {', '.join(missing)}")
        if mistakes:
            raise ValueError(f"KV cache policy {text!r}: {'; '.join(mistakes)}. A right one: {EXAMPLE!r}")
        ksem, kgeo, v = (PartFormat.parse(found[key]) for key in KEYS[:3])
        return cls(ksem, kgeo, v, int(found["resid"]))

    def __str__(self) -> str:
        return f"ksem={self.ksem},kgeo={self.kgeo},v={self.v},resid={self.resid}"

    def bytes_per_token(self, kv_heads: int, d_sem: int, d_geo: int, d_v: int) -> int:
        """Bytes of one token in the quantized part, all KV heads: what a decode step must read for it."""
        return kv_heads * (self.ksem.bytes(d_sem) + self.kgeo.bytes(d_geo) + self.v.bytes(d_v))

    def bytes(self, batch: int, capacity: int, kv_heads: int, d_sem: int, d_geo: int, d_v: int) -> int:
        """Bytes of the tensors of a `QuantizedCache`: parts, tail, and the three int32 of every row.

        Storage of the parts is rounded up to 64 tokens.
        """
        tail = self.resid * kv_heads * VALUE_BYTES * (d_sem + d_geo + d_v)
        row = storage_slots(capacity) * self.bytes_per_token(kv_heads, d_sem, d_geo, d_v) + tail + 3 * 4
        return batch * row

    def bits_per_value(self, d_sem: int, d_geo: int, d_v: int) -> float:
        """Stored bits a value of the quantized part, averaged over a token."""
        return 8 * self.bytes_per_token(1, d_sem, d_geo, d_v) / (d_sem + d_geo + d_v)


def storage_slots(capacity: int) -> int:
    """Tokens for which the parts have room: capacity rounded up to a multiple of 64."""
    return -(-capacity // SLOTS) * SLOTS


def _wrong(key: str, value: str) -> list[str]:
    if key != "resid":
        return [] if value in FORMATS else [f"{key}={value}: {_no_format(value)}"]
    if re.fullmatch(r"[0-9]{1,9}", value):
        return []
    return [f"resid={value}: it must be a whole number of tokens, 0 or more, such as resid=128"]


def _no_format(text: str) -> str:
    return f"{text!r} is no format{_meant(text, FORMATS)} (formats: {', '.join(FORMATS)})"


def _meant(text: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""
