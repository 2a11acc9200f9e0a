"""Callbacks: logging, status, resources and diagnostics of a run."""
