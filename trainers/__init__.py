"""One file = one class = one `-tr` name = one paper."""

import nnunet_ssl.training  # noqa: F401 - says in one sentence when nnU-Net has the wrong version, before all else
