"""Above the training loop: stages and what they need, cache, worker processes, several GPUs."""
