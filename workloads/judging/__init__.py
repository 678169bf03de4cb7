"""What the ranks share that judge one case after the other: kinds `parity` and `bench`. Imports no kernel."""
