"""What a run learns from tiles without masks."""
