"""Files: exact reads, atomic writes, safetensors, errors of the system."""
