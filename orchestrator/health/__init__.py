"""Is a run well? Pure: facts and monotonic seconds in, findings and acts out. No files, no clocks, no Ray, no torch.

    facts      what was seen of ranks and pods at one look
    track      what is remembered of a rank: ages, medians, windows
    rules      a function a rule: facts and track -> Finding or None (`silence`, `figures`, `processes`, `podrules`)
    ladder     findings -> acts: hysteresis, one rung an episode, budgets
    monitor    the whole: `Monitor.look(now, ranks, pods) -> list[Act]`

Used by the supervisor twice a second and by `orch watch --dir`.
"""
