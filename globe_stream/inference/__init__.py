"""Exported factors as tensors and as layers of a model."""
