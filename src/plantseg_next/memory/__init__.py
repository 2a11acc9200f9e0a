"""The memory of a training step: traced, planned and plotted."""
