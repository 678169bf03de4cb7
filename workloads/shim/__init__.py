"""The shim: parent of one rank process. `python -m workloads.shim <order.json>`, started by the keeper.

It leases the rank's devices, starts it, writes its record, carries out `.HALT` and stop orders on their clocks, reaps
and sweeps what the rank left, and tells how it ended. One thread, standard library only. It never touches what the
rank prints (the rank writes straight to its log) and never decides about restarts.

    __main__   the few steps in order
    rank       one rank from lease to finished record
    lease      device locks
    spawn      fork and exec by hand
    halt       what was asked, and `clocks`: what to send when (pure)
    care       the loop while the rank lives
    loglimit   how much a log may hold
    oom        did the kernel kill it for memory?
    record     the rank record and the shim's log
"""
