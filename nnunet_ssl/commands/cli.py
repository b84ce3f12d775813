"""The command `nnunet_ssl VERB`: finds the verb, and imports nothing heavy before it is needed."""

import argparse
import importlib
import os
import sys
import traceback
from contextlib import suppress

import nnunet_ssl
from nnunet_ssl.data.disk_faults import is_fault_of_disk, words_of

VERBS = {
    "demo": "see in minutes what it does, on synthetic scans",
    "trainers": "list the trainers: paper, cost, options",
    "convert": "convert a public benchmark to nnU-Net's format",
    "split": "divide cases into labeled, unlabeled and validation: published splits, or by patient",
    "preprocess": "preprocess the unlabeled images of a data set (a training does it on first use)",
    "preview": "show what a trained network learns from on unlabeled patches",
    "pseudolabel": "predict the unlabeled scans, and rank them by how uncertain the model is",
    "adopt": "train from here on with unlabeled cases that an expert has labeled by now",
    "benchmark": "train and compare trainers with few labeled cases: all combinations, here or on a cluster",
    "report": "compare all trainings of a data set on one page",
    "export": "write a trained model for an nnU-Net without this package",
    "evaluate": "measure predictions against references: overlap, surface distances in mm, volumes",
    "hc": "measure head circumferences in predicted masks of fetal ultrasound",
    "audit": "prove which labels a training can see: copies, patients, test images, plans, runs",
    "doctor": "check whether a training can start, and say how to fix what is wrong",
}


REASONS = {
    FileNotFoundError: "there is no {}",
    FileExistsError: "{} is in the way: remove it, or choose another place",
    NotADirectoryError: "{}: a part of this path is a file, not a folder",
    IsADirectoryError: "{} is a folder, a file was expected",
    PermissionError: "{}: permission denied, look at its permissions or choose another place",
}


def main(arguments: list[str] | None = None) -> int:
    """Run `nnunet_ssl VERB ...` and return its exit code.

    0 done, 1 not all is well, 2 wrong use, 3 a bug of ours, which is shown with all that a report of it needs,
    130 interrupted, 141 nobody reads the output any more (`| head`).
    """
    parser = argparse.ArgumentParser(prog="nnunet_ssl", description="Semi-supervised training for nnU-Net v2.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    modules = {}
    for verb, purpose in VERBS.items():
        modules[verb] = importlib.import_module(f"nnunet_ssl.commands.{verb}")
        modules[verb].add_arguments(verbs.add_parser(verb, help=purpose, description=modules[verb].__doc__))
    options = parser.parse_args(arguments)
    try:
        refuse_odd_variables()
        code = modules[options.verb].run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return 141
    except KeyboardInterrupt:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        from tqdm import tqdm

        tqdm.write(f"nnunet_ssl {options.verb}: interrupted", file=sys.stderr)  # on a line beside that of a bar
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"nnunet_ssl {options.verb}: {sentence(error)}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    except Exception as error:  # noqa: BLE001 - what nobody has foreseen is neither hidden nor taken for wrong use
        traceback.print_exc()
        kind = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(
            f"nnunet_ssl {options.verb}: this is a bug of nnunet_ssl {nnunet_ssl.__version__} ({kind}), please report "
            "it with the lines above",
            file=sys.stderr,
        )
        return 3
    return code


def refuse_odd_variables() -> None:
    """Raise a ValueError if a variable that nnU-Net takes for a number, as soon as it is imported, is none."""
    for name in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA"):
        value = os.environ.get(name, "0")
        if not value.isdecimal():
            raise ValueError(f"{name} is a number of processes, got {value!r}: export {name}=4, or unset {name}")


def sentence(error: Exception) -> str:
    """Return what an error says on one line; of one of the operating system the file and what is wrong with it."""
    if is_fault_of_disk(error):
        return words_of(error)
    if not isinstance(error, OSError) or error.filename is None:
        return " ".join(str(error).split())
    files = " and ".join(str(file) for file in (error.filename, error.filename2) if file is not None)
    kinds = (kind for kind in REASONS if isinstance(error, kind))
    return REASONS.get(next(kinds, OSError), f"{{}}: {error.strerror}").format(files)
