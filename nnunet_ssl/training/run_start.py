"""What a run was started with, in a file beside its log: it begins again from there while it has no checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_ssl.data.preprocessed_images import read_json, write_json_atomically
from nnunet_ssl.training.checkpoints import checkpoints_of
from nnunet_ssl.training.options import ENVIRONMENT_VARIABLE, Option

NAME = "run_ssl.json"


@dataclass(frozen=True)
class RunStart:
    """The start of a run.

    Attributes:
        options: by name.
        replaces: whether checkpoints in its folder are of a run that it replaces, and still to be deleted.
    """

    options: Mapping[str, Option]
    replaces: bool = False

    def write(self, folder: str | Path) -> None:
        """Write it into the folder of the run, over that of another one."""
        write_json_atomically(asdict(self), Path(folder, NAME), indent=4)

    @classmethod
    def read(cls, folder: str | Path) -> "RunStart | None":
        """Return the start of the run of a folder, if it says so.

        Raises:
            ValueError: the file is damaged.
        """
        file = Path(folder, NAME)
        if not file.exists():
            return None
        content = read_json(file)
        try:
            return cls(dict(content["options"]), bool(content["replaces"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is damaged: delete it, and give the options of the run again") from error


def refuse_to_replace(folder: str | Path) -> None:
    """Raise a ValueError if a training that starts anew would write over another one."""
    if there := [file.name for file in checkpoints_of(folder)]:
        raise ValueError(
            f"{folder} holds a run already ({', '.join(there)}): go on with it by --c, or give "
            f'{ENVIRONMENT_VARIABLE}="replace=true" to delete it and train anew'
        )


def delete_replaced(folder: str | Path) -> None:
    """Delete checkpoints and scores of the run that another one replaces."""
    scores = Path(folder).glob("**/validation*/summary.json")
    for file in (*checkpoints_of(folder), *scores):
        file.unlink()
