"""`sweep`: many runs of one model that differ in a few options, with what they share done once."""
