"""The supervisor of one run: a Ray actor on the head pod that owns the run's state and nothing else.

    __main__   the Ray job: create or find the actor, end
    actor      the process: lock, loop, log, leaving
    engine     one look: observe, decide, act; `acting` carries out
    decide     what to do next, pure (with `rules` for started attempts, `treat` for findings of health, `outcome` for
               how one ended)
    watchdog   the rules of `orchestrator.health` on this run: dumps, `.HALT`, ends
    memory     what is remembered: a fold over events.jsonl (with `illness`); `journal` writes events and status
    seen       what was seen; `actions`: what may be done
    gang       placement group and PodAgents, by Ray; `agent`, `hands`, `observe` are the pod's side

Twice a second it looks at files and processes, decides, and acts. Killed at any moment it comes back, folds the events,
finds gang and ranks again by name and record, and goes on. It imports neither the CLI nor SSH.
"""
