"""The memory of a step: foreseen, planned for, drawn."""
