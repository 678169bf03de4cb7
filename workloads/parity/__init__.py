"""Kind `parity`: the kernels' matrix of cells, Triton against reference, as one rank of a supervised run."""
