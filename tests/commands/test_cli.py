import os
import subprocess
import sys

import pytest

from nnunet_ssl.commands.cli import VERBS, main


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom nnunet_ssl.commands.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'nnunetv2') if name in sys.modules])"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.strip().splitlines()[-1] == "[]"
    assert all(verb in output for verb in VERBS)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["preprocess"], ["preprocess", "-d"]])
def test_wrong_use_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: nnunet_ssl" in capsys.readouterr().err


@pytest.mark.parametrize("length", [1, 1_000_000])  # less than is kept back until the end, and more
def test_output_that_nobody_reads_to_the_end_is_no_error(length):
    read, write = os.pipe()
    os.close(read)
    code = (
        "import sys\nfrom nnunet_ssl.commands import cli, trainers\n"
        f"trainers.run = lambda options: print('x' * {length})\n"
        "sys.exit(cli.main(['trainers']))"
    )
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"
    }  # keeps nothing back
    process = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, env=environment
    )
    os.close(write)
    assert process.returncode == 141
    assert process.stderr == ""
