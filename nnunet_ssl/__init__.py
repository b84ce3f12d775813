"""Semi-supervised training for nnU-Net v2.

discovery        how `nnUNetv2_train -tr` finds our trainers
training         the life of a run: the base classes of all trainers
data             where batches come from: the unlabeled pool, its preprocessing, the two streams, the views
building_blocks  what a method is composed of: functions of tensors
splits           which cases are labeled, unlabeled and validated: published protocols, and others by patient
evaluation       metrics, statistics, the report
conversion       how a published data set becomes one of nnU-Net's
demonstration    the synthetic scans and the picture of `nnunet_ssl demo`
commands         the verbs of `nnunet_ssl`
trainers         one file = one method = one `-tr` name
dataset_conversion  one file = one published data set
"""


def __getattr__(name: str) -> str:
    """Look the version up only when somebody asks: this package is imported at every interpreter start."""
    if name == "__version__":
        from importlib.metadata import version

        return version("nnunet_ssl")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
