"""Batches become scores."""
