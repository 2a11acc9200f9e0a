"""How far predictions can be trusted: used by training; inference may use it."""
