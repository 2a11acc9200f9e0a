"""One module per command, and the parts that training runs share."""
