"""Which cases are labeled, unlabeled and for validation: published splits, seeded ones, and hiding labels."""
