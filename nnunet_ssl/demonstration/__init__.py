"""What `nnunet_ssl demo` shows: synthetic scans, and a picture of the result."""
