"""From a trained biLM to vectors: pure functions, and files of vectors."""
