"""`orch why`: what happened to a run, which rank was sick first, what it cost, and the one command to type now."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.shared import Json, Run, emit, look_at, open_source, say, wake_where_asleep

Cached = Annotated[bool, typer.Option("--cached", help="From the copy here; no pod is asked.")]


def why(run: Run, cached: Cached = False, json: Json = False) -> None:
    """What happened to a run: the first sick rank with its stack, what orch did, work lost, what to type now."""
    from orchestrator.runs.render import screen_width
    from orchestrator.runs.why import tell
    from orchestrator.runs.whyfacts import gather
    from orchestrator.runs.whyscreen import document, screen

    source = open_source(run)
    look_at(source, cached=cached)
    facts = gather(source, cached=cached)
    story, view = tell(facts), facts.view
    if json:
        emit(document(story))
    else:
        say(screen(story, view.now, screen_width()))
    if not cached and not view.ended and not view.supervised and view.stale_s is None:
        wake_where_asleep(source)  # last: the answer does not wait for it
    source.close()
