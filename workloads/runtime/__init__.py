"""What a rank imports to be seen, halted and resumed: `from workloads.runtime import Run`.

Importing this package needs the standard library only; torch is imported inside functions that cannot do without.
"""

from workloads.runtime.run import Run

__all__ = ["Run"]
