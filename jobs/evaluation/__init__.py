"""Evaluation: tasks, protocols, metrics, and the cells they make."""
