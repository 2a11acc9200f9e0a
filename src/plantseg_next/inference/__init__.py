"""Scores are used; nothing here needs torch until a torch model is loaded."""
