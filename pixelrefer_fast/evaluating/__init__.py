"""The paper's benchmarks: their published files -> questions, and answers -> scores. `cli.eval` runs both steps."""
