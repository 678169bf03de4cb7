"""Ray's Jobs HTTP API, as much of it as a keeper needs, over loopback with the cluster's token.

Standard library only: the keeper must not import Ray. API: `ray.dashboard.modules.job` (Ray 2.60).
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any


class JobsApiError(Exception):
    """The API did not answer as expected; `status` is the HTTP status, 0 when there was none, `text` all it said."""

    def __init__(self, status: int, text: str) -> None:
        last = text.strip()[-300:]  # Ray answers with a traceback, whose reason is its end
        super().__init__(f"HTTP {status}: {last}" if status else text)
        self.status, self.text = status, text


@dataclass(frozen=True)
class JobsApi:
    port: int
    token: str
    timeout_s: float = 5.0

    def alive(self) -> bool:
        try:
            self._call("GET", "/api/version")
        except JobsApiError:
            return False
        return True

    def submit(self, submission_id: str, entrypoint: str, env: dict[str, str]) -> bool:
        """True when the job was accepted, False when the id was used before."""
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "runtime_env": {"env_vars": env},
            "entrypoint_num_cpus": 0,
        }
        try:
            self._call("POST", "/api/jobs/", body)
        except JobsApiError as e:
            if "already exists" in e.text:
                return False
            raise
        return True

    def status(self, submission_id: str) -> tuple[str, str]:
        """(status, message): PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED, or UNKNOWN when there is no such job."""
        try:
            row = self._call("GET", f"/api/jobs/{submission_id}")
        except JobsApiError as e:
            if e.status == 404:
                return "UNKNOWN", str(e)
            raise
        return str(row.get("status", "UNKNOWN")), str(row.get("message", ""))

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            raw = response.read(4 << 20)
        except (OSError, http.client.HTTPException) as e:
            raise JobsApiError(0, f"{type(e).__name__}: {e}") from e
        finally:
            connection.close()
        if response.status != 200:
            raise JobsApiError(response.status, raw.decode(errors="replace"))
        try:
            row = json.loads(raw)
        except ValueError as e:
            raise JobsApiError(response.status, "the answer is not JSON") from e
        return row if isinstance(row, dict) else {}
