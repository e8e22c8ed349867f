"""Carrying out: resumable passes, devices, signals, progress, metrics."""
