"""Scenes -> tiles -> batches."""
