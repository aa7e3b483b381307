"""Memory: what a training step takes, measured, and planned within a budget."""
