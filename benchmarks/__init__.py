"""The stack against `flax.nnx` and torch: `make bench`, or `python -m benchmarks --help`."""
