"""`eval`: the world's questions, and the paper's benchmarks in two steps, answers and scores."""
