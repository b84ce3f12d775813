"""Trainings that are compared: which there are, how one is run, the small file that each leaves, and their tables."""
