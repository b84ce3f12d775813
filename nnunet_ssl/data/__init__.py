"""Where batches come from: the unlabeled pool, its preprocessing, the two streams, the views."""
