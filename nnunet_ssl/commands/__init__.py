"""The verbs of `nnunet_ssl`, one file each."""
