"""globe-stream: compress Mixture-of-Experts language models out of core."""

__version__ = "0.1.0"
