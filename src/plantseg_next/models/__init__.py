"""Networks: from batches of images to logits, and models on disk."""
