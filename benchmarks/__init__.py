"""Measurements: each script writes one JSON to `results/`, `figures` draws them."""
