"""Converters of public benchmarks into nnU-Net data sets: one file for each data set."""
