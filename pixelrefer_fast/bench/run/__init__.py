"""What the benchmarks run: workloads, stages, whole questions, rivals and cases of operations."""
