"""Packaging of nnunet_ssl: the `package_dir` map, and the two start-up files that make `-tr` find its trainers."""

import base64
import hashlib
import shutil
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

STARTUP_FILES = {  # PEP 829: new Pythons read the .start file, older ones the .pth file
    "nnunet_ssl.start": "nnunet_ssl.discovery.startup:register\n",
    "nnunet_ssl.pth": "import nnunet_ssl.discovery.startup; nnunet_ssl.discovery.startup.register()\n",
}
SLURM = ["submitit>=1.5.4,<1.6"]
PRETRAINED_NETWORKS = ["segmentation-models-pytorch>=0.5,<0.7"]  # all that it needs comes with nnunetv2 already


class BuildWithStartupFiles(build_py):
    """Puts the start-up files at the root of a regular wheel, from where they are installed into site-packages."""

    def run(self) -> None:
        """Build, then write them."""
        super().run()
        if not self.editable_mode:
            Path(self.build_lib).mkdir(parents=True, exist_ok=True)
            for name, content in STARTUP_FILES.items():
                Path(self.build_lib, name).write_text(content)


class EditableWheelWithStartupFiles(editable_wheel):
    """Adds the start-up files to the editable wheel, which does not take over what `build_py` puts beside packages."""

    def run(self) -> None:
        """Make the wheel, then add them."""
        super().run()
        (wheel,) = Path(self.dist_dir).glob("nnunet_ssl-*editable*.whl")
        add_to_wheel(wheel, STARTUP_FILES)


def add_to_wheel(wheel: Path, files: dict[str, str]) -> None:
    """Write a wheel again with more files at its root, each entered in its RECORD."""
    extended = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(extended, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            content = source.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                content += "".join(record_line(name, text) for name, text in files.items()).encode()
            target.writestr(item, content)
        for name, text in files.items():
            target.writestr(name, text)
    shutil.move(extended, wheel)


def record_line(name: str, text: str) -> str:
    """One line of a wheel's RECORD: name, urlsafe SHA-256 without padding, size in bytes."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(text.encode())}\n"


setup(
    name="nnunet_ssl",
    version="0.1.0",
    description="Semi-supervised training for nnU-Net v2: a few labeled and many unlabeled scans, one command.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "nnunet_ssl",
        "nnunet_ssl.benchmarking",
        "nnunet_ssl.building_blocks",
        "nnunet_ssl.commands",
        "nnunet_ssl.conversion",
        "nnunet_ssl.data",
        "nnunet_ssl.demonstration",
        "nnunet_ssl.discovery",
        "nnunet_ssl.discovery.shim",
        "nnunet_ssl.evaluation",
        "nnunet_ssl.leaks",
        "nnunet_ssl.pictures",
        "nnunet_ssl.splits",
        "nnunet_ssl.training",
        "nnunet_ssl.trainers",
        "nnunet_ssl.dataset_conversion",
    ],
    package_dir={"nnunet_ssl.trainers": "trainers", "nnunet_ssl.dataset_conversion": "dataset_conversion"},
    package_data={"nnunet_ssl.splits": ["protocols/*.json"], "nnunet_ssl.evaluation": ["templates/*.j2"]},
    install_requires=[
        "nnunetv2>=2.8,<2.9",
        "torch>=2.7",
        "numpy>=1.26",
        "batchgenerators>=0.25.3",
        "batchgeneratorsv2>=0.3.0",
        "blosc2>=3.3.2",
        "connected-components-3d>=4,<5",
        "dynamic_network_architectures>=0.4.4,<0.5",
        "filelock>=4.3.1,<5",
        "h5py>=3.10",
        "jinja2>=3.1",
        "matplotlib>=3.10",
        "nibabel>=5",
        "packaging>=23",
        "pydantic>=2.6,<3",
        "regex>=2023.8.8",
        "scikit-image>=0.26",
        "scipy>=1.11",
        "SimpleITK>=2.3",
        "tifffile>=2023.2.28",
        "tqdm>=4.60",
        "typing_extensions>=4.7",
    ],
    extras_require={
        "mn": PRETRAINED_NETWORKS,
        "slurm": SLURM,
        "test": [
            *PRETRAINED_NETWORKS,
            *SLURM,
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "monai>=1.4",
            "setuptools>=77",
            "wheel>=0.43",
            "ruff>=0.9",
        ],
        "dev": ["pre-commit>=3.5", "ruff>=0.9"],
    },
    entry_points={"console_scripts": ["nnunet_ssl = nnunet_ssl.commands.cli:main"]},
    cmdclass={"build_py": BuildWithStartupFiles, "editable_wheel": EditableWheelWithStartupFiles},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Healthcare Industry",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
