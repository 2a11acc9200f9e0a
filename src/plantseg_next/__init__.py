"""Leaf photographs in; lesion masks and severity figures out."""

__version__ = "0.1.0"
