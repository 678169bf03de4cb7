"""Generation with a persistent cache: whole batches of ragged prompts, and conversations of many turns."""
