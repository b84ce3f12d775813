"""Measuring predictions against references, and showing the result."""
