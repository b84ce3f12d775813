"""Names in files that become parts of paths: each stays inside its folder."""

from pathlib import PurePosixPath, PureWindowsPath


def problem_of_name(name: str) -> str | None:
    """Return why a name cannot be that of a case or an identifier, on any system; None if it can."""
    if not name or name in (".", ".."):
        return "is no name"
    if any(kind(name).name != name for kind in (PurePosixPath, PureWindowsPath)):
        return "is a path, which may lead out of its folder"
    if any(ord(sign) < 32 for sign in name):
        return "has signs that no name has"
    return None


def checked_name(name: str) -> str:
    """Return a name; a ValueError if it cannot be that of a case or an identifier."""
    if problem := problem_of_name(name):
        raise ValueError(f"{name!r:.60} {problem}")
    return name


def checked_ending(ending: str) -> str:
    """Return a file ending; a ValueError if it has no dot, or makes a path of a name."""
    if not ending.startswith(".") or not ending.strip("."):
        raise ValueError(f'is written with its dot, such as ".nii.gz", got {ending!r:.60}')
    checked_name(f"case{ending}")
    return ending
