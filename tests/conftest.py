"""What every test starts from."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# machines are shared: an example that takes long says nothing about the code
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

# A shell ignores SIGINT for what it runs with `&`, nohup SIGHUP for what it runs at all; what a test starts, and
# interrupts, would inherit that. With a handler here a program that is executed begins with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
