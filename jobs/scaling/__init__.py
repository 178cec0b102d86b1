"""Laws of loss against size, data and compute, fitted to finished runs."""
