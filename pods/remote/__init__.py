"""What runs on a pod: standard library only. `python <this> serve HOME` answers operations over its standard streams.

`dispatch` names every module that has operations. An operation is `def op(home: OrchHome, args: Mapping[str, Any],
data: bytes) -> Answer` in its module's table `OPERATIONS`; `pods.pod` calls it, here or on another machine.
"""
