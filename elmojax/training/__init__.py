"""Pretraining: optimiser, sharding, the step, the loop, evaluation, checkpoints."""
