"""Scores are judged; this room knows numpy and no model."""
