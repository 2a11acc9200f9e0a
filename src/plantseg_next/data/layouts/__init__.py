"""One small reader a published layout; each returns the one manifest."""

from plantseg_next.data.layouts.recognise import MANIFEST_FILE, read_folder

__all__ = ["MANIFEST_FILE", "read_folder"]
