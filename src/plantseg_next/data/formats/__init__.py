"""One small reader a published layout; each returns the one manifest."""

from plantseg_next.data.formats.recognize import read_folder, read_folders

__all__ = ["read_folder", "read_folders"]
