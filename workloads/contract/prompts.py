"""A file of prompts: text, one a line; or JSON, a list of conversations, each a prompt or a list of turns. Pure.

Read by the operator's side (`orch decode --prompts FILE`) and by the rank (`decode.prompts: PATH`), so that both take
and refuse the same. Standard library only.
"""

from __future__ import annotations

import json

Conversations = list[list[str]]
MAX_BYTES = 64 << 20
MAX_CONVERSATIONS = 100_000


def conversations_of(data: bytes, name: str) -> Conversations:
    """The prompts in `data`, turn by turn. ValueError that says what is wrong, and where.

    `name` decides: `*.json` is JSON, anything else is text, where blank lines are passed over.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"it is not UTF-8 text (byte {e.start})") from e
    if not name.endswith(".json"):
        found = [[line] for line in text.splitlines() if line.strip()]
    else:
        try:
            read = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"it is not JSON: {e}") from e
        if not isinstance(read, list):
            raise ValueError(f"it holds a {type(read).__name__}, not a list of conversations")
        found = [_conversation(number, one) for number, one in enumerate(read, 1)]
    if not found:
        raise ValueError("there is no prompt in it")
    if len(found) > MAX_CONVERSATIONS:
        raise ValueError(f"it holds {len(found)} conversations; at most {MAX_CONVERSATIONS} are taken")
    return found


def _conversation(number: int, one: object) -> list[str]:
    turns = [one] if isinstance(one, str) else one
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t for t in turns):
        raise ValueError(f"conversation {number} is no prompt and no list of prompts, none of them empty")
    return [str(t) for t in turns]
