"""A synthetic planet with known truth, and the raw scenes that four sensors make of it."""
