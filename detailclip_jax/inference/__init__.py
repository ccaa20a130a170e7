"""Inference with a trained model: encode images and texts, compute attention maps, store and search embeddings."""
