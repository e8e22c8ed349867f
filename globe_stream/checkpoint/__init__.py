"""Where experts lie in a checkpoint, and how to read them: knows nothing of banks."""
