"""How a number comes about: time, power, memory, the machine and its rates."""
