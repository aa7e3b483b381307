"""Files in the fastMRI layout: read, written, simulated, and cut into slices."""
