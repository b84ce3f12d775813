"""The life of a run: the base classes of all trainers, and what they need around a step."""

from nnunet_ssl.discovery.host_version import check_nnunetv2_version

check_nnunetv2_version()
