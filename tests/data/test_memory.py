"""What the variables of `memory` do to a process."""

import os
import platform
import subprocess
import sys

import pytest

from nnunet_ssl.data.memory import KEPT_BLOCKS

USES_A_BLOCK_AGAIN = """
import resource
for _ in range(20):
    block = b"x" * 2**26
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize() / 2**26)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are glibc's")
def test_a_block_that_is_used_again_is_asked_for_once():
    def blocks_asked_for(variables: dict[str, str]) -> float:
        others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", USES_A_BLOCK_AGAIN]
        return float(subprocess.run(command, env=others | variables, capture_output=True, check=True).stdout)

    assert blocks_asked_for({}) > 20
    assert blocks_asked_for(KEPT_BLOCKS) < 2
