"""The i-RIM and the fastMRI pipeline around it, built on invtorch."""
