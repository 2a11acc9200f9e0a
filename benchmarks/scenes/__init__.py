"""Drawn scenes with exact masks, from which the starter model learned."""
