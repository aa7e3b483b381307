"""Memory: measure what a training step allocates, and plan it within a budget."""
