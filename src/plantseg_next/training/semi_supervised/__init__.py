"""Semi-supervised learning: pseudo-labels from an EMA teacher, and image-level labels."""
