"""Which labels a training can see: copies of images under other names, and what splits and files say."""
