"""How fast Penstock is, beside what the database itself can do: `python tests/benchmarks`."""
