"""Photographs become batches."""
