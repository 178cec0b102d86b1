"""Where and how things run."""
