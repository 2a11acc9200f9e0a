"""Checks of data sets, and protection from leaks between splits."""
