import subprocess
import sys
from importlib import metadata

import pytest

from nnunet_ssl.discovery import host_version

REAL_VERSION = metadata.version


def pretend(monkeypatch, installed):
    def version(name):
        if name == "nnunetv2" and installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed if name == "nnunetv2" else REAL_VERSION(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize("installed", ["2.8.0", "2.8.1", "2.8.9"])
def test_versions_in_range_pass(monkeypatch, installed):
    pretend(monkeypatch, installed)
    host_version.check_nnunetv2_version()


@pytest.mark.parametrize("installed", ["2.7.0", "2.9.0", "3.0"])
def test_versions_outside_name_both_and_the_remedy(monkeypatch, installed):
    pretend(monkeypatch, installed)
    expected = rf'works with nnunetv2<2.9,>=2.8, but {installed} is installed: pip install "nnunetv2<2.9,>=2.8"'
    with pytest.raises(ImportError, match=expected):
        host_version.check_nnunetv2_version()


def test_missing_nnunetv2_is_said(monkeypatch):
    pretend(monkeypatch, None)
    with pytest.raises(ImportError, match="not installed: pip install"):
        host_version.check_nnunetv2_version()


def test_import_of_a_trainer_checks_the_version_before_all_else():
    """An older nnU-Net lacks modules that a trainer imports: the sentence comes before that."""
    code = (
        "import sys\n"
        "sys.modules['nnunetv2.training.dataloading.data_loader'] = None\n"
        "from importlib import metadata\n"
        "real = metadata.version\n"
        "metadata.version = lambda name: '2.9.0' if name == 'nnunetv2' else real(name)\n"
        "import nnunet_ssl.trainers.nnUNetTrainerMeanTeacher\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    assert result.stderr.strip().splitlines()[-1].startswith("ImportError: nnunet_ssl ")
