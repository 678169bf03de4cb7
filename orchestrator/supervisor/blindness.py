"""Whether the run directory can be used: is it there, does it take what is written? Said once, and when it is back.

Without it nobody can tell us that a rank is well: its beats do not arrive. So nothing sharp is done meanwhile, and what
was found before is looked at anew. Reads only; called by `watchdog`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from orchestrator.supervisor.journal import Journal
from workloads.contract.rundir import RunDir

log = logging.getLogger(__name__)


@dataclass
class Blindness:
    run: RunDir
    journal: Journal
    _why: str = ""
    _since: float = 0.0

    def look(self, now: float) -> tuple[str, bool]:
        """(why it cannot be used, or ""; whether it can be used again since this look)."""
        why = self._problem()
        if bool(why) == bool(self._why):
            return self._why, False
        if why:
            self._why, self._since = why, now
            log.warning("%s", why)
            self.journal.event(
                "note", f"{why}; nothing is ended for that, and the rules of health rest", data={"away": True}
            )
            return why, False
        gone_s, self._why = now - self._since, ""
        log.info("the run directory can be used again")
        self.journal.event("note", f"the run directory can be used again, after {gone_s:.0f} s", data={"away": False})
        return "", True

    def _problem(self) -> str:
        try:
            self.run.run_json.stat()
        except OSError as e:
            return f"the run directory is not there: {e.strerror or e}"
        return f"the run directory takes no writes: {self.journal.trouble}" if self.journal.trouble else ""
