"""Inference: predictions, severity and output files; torch is imported only for a model."""
