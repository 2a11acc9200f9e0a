"""What is wrong with a data set, and what must not leak between its splits."""
