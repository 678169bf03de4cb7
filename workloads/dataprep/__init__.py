"""What a run of kind `data` does: tokenize a source once into shards, or read a job's data and say how it goes."""
