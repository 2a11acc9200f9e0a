"""Evaluation of predictions against truth; depends on numpy, not on torch."""
