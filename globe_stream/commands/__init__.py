"""One module a command: each has a function that returns the command's document."""
