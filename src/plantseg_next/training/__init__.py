"""Scores become learning."""
