"""How the two embedded models were made, step by step; `train_mini.py` beside this folder runs it."""
