"""One worker's run: the loop, a step, the optimizer, collectives, checkpoints."""
