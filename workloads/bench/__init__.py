"""Kind `bench`: suites of cases, each checked and then timed beside its limit and its peers, as one rank of a run."""
