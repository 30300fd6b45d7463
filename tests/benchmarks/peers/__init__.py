"""Other limiters, each driven by a script in its own environment; see `benchmarks.peer`."""
