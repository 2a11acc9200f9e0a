"""How far predictions can be trusted: used by training and inference alike."""
