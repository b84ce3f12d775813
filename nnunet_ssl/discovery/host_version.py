"""Which nnU-Net this package runs on."""

from importlib import metadata

from packaging.requirements import Requirement


def check_nnunetv2_version() -> None:
    """Raise an ImportError in one sentence when the installed nnunetv2 is outside the range this package declares."""
    problem = nnunetv2_version_problem()
    if problem is not None:
        raise ImportError(problem)


def nnunetv2_version_problem() -> str | None:
    """Return what is wrong with the installed nnunetv2 and how to fix it, or None."""
    required = supported_nnunetv2()
    try:
        installed = metadata.version("nnunetv2")
    except metadata.PackageNotFoundError:
        return f'nnunet_ssl needs nnunetv2{required.specifier}, which is not installed: pip install "{required}"'
    if required.specifier.contains(installed, prereleases=True):
        return None
    return (
        f"nnunet_ssl {metadata.version('nnunet_ssl')} works with nnunetv2{required.specifier}, but {installed} is "
        f'installed: pip install "{required}"'
    )


def supported_nnunetv2() -> Requirement:
    """Return the range of nnunetv2 as this package's own metadata declares it."""
    requirements = map(Requirement, metadata.requires("nnunet_ssl") or [])
    return next(requirement for requirement in requirements if requirement.name == "nnunetv2")
