"""What a pretraining run needs before it begins: memory, operations, time."""
