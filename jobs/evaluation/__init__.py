"""Comparing models: one cell is a model, a task, a protocol, sensors, a share of the labels and a seed.

`task` says what is asked and of which samples, `protocols` how a model answers, `metrics` what an answer is worth, `cell` what
is written down of it. `jobs.evaluate` puts them together.
"""
