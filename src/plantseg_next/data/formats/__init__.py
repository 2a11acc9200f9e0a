"""Readers of data set layouts; each returns a ``Manifest``."""

from plantseg_next.data.formats.recognize import read_folder, read_folders

__all__ = ["read_folder", "read_folders"]
