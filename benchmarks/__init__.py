"""Benchmarks: `python -m benchmarks.<name> [--quick] [--json FILE]` prints every figure beside its goal."""
