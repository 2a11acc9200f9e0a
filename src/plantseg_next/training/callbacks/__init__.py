"""What is told of a run, and whoever hears it."""
