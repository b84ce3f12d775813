import importlib

import pytest

from nnunet_ssl.commands.cli import main
from nnunet_ssl.commands.convert import CONVERTERS


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_says_what_it_reads(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["convert", name, "--help"])
    out = capsys.readouterr().out
    assert f"usage: nnunet_ssl convert {name} " in out
    module = importlib.import_module(f"nnunet_ssl.dataset_conversion.{CONVERTERS[name]}")
    assert module.__doc__.splitlines()[0] in out
    assert f"default: {int(CONVERTERS[name][7:10])}" in out


@pytest.mark.parametrize("name", CONVERTERS)
def test_unknown_layout_says_what_was_expected(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert main(["convert", name, "-i", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} has no known layout of" in error
    assert "expected" in error
    assert not (tmp_path / "raw").exists()


def test_unknown_name_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["convert", "KiTS"])
    assert "'ACDC'" in capsys.readouterr().err


def test_source_that_is_not_there(tmp_path, capsys):
    assert main(["convert", "LA", "-i", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"nnunet_ssl convert LA: {tmp_path / 'none'} is no folder\n"
