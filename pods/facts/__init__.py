"""What a pod is: a fact is a command and a pure parser of its output.

`collect` asks any machine with a POSIX shell, `local_facts` this one, quickly; every `parse_*` is a function of text
and is tested on recorded text. A fact that cannot be had is said, never guessed. Standard library only: the keeper
imports it.
"""

from pods.facts.collect import collect, facts_of
from pods.facts.gpus import gpus_of, parse_nvidia_smi
from pods.facts.kinds import Disk, Gpu, GpuProcess, Interpreter, MigDevice, PodFacts, Xid
from pods.facts.local import cpu_count, local_facts
from pods.facts.parse import parse_cpu_max, parse_meminfo

__all__ = [
    "Disk",
    "Gpu",
    "GpuProcess",
    "Interpreter",
    "MigDevice",
    "PodFacts",
    "Xid",
    "collect",
    "cpu_count",
    "facts_of",
    "gpus_of",
    "local_facts",
    "parse_cpu_max",
    "parse_meminfo",
    "parse_nvidia_smi",
]
