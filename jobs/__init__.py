"""The commands a person submits."""
