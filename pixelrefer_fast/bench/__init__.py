"""Benchmarks and profiling: what the command line, the scripts of `benchmarks/` and the on-device check share.

Importing this package loads nothing: each module brings in what it needs.
"""
