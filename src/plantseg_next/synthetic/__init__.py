"""Drawn leaves and scenes with exact masks."""
