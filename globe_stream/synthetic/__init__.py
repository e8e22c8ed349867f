"""Planted and random checkpoints, made offline."""
