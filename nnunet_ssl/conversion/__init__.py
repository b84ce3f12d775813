"""What the converters in `dataset_conversion/` share: writing nnU-Net's raw format, and their command line."""
