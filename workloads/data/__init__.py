"""Where tokens come from and in which order, exactly the same for every world size and after every resume."""
