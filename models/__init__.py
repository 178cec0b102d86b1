"""Batches -> losses, embeddings. To use a trained model: `Encoder.load(folder).encode(batch)`."""

from models.batch import Batch, Tiles
from models.encoder import Encoder

__all__ = ["Batch", "Encoder", "Tiles"]
