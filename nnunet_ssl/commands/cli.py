"""The command `nnunet_ssl VERB`: finds the verb, and imports nothing heavy before it is needed."""

import argparse
import importlib
import os
import sys

VERBS = {
    "demo": "see in minutes what it does, on synthetic scans",
    "trainers": "list the trainers: paper, cost, options",
    "convert": "convert a public benchmark to nnU-Net's format",
    "split": "divide cases into labeled, unlabeled and validation: published splits, or by patient",
    "preprocess": "preprocess the unlabeled images of a data set (a training does it on first use)",
    "preview": "show what a trained network is taught on unlabeled patches",
    "pseudolabel": "predict the unlabeled scans, and rank them by which to label next",
    "report": "compare all trainings of a data set on one page",
    "export": "write a trained model for a nnU-Net without this package",
    "evaluate": "measure predictions against references: overlap, surface distances in mm, volumes",
    "hc": "measure head circumferences in predicted masks of fetal ultrasound",
    "doctor": "check whether a training can start, and say how to mend what is wrong",
}


def main(arguments: list[str] | None = None) -> int:
    """Run `nnunet_ssl VERB ...` and return its exit code.

    0 done, 1 not all is well, 2 wrong use, 130 interrupted, 141 nobody reads the output any more (`| head`).
    """
    parser = argparse.ArgumentParser(prog="nnunet_ssl", description="Semi-supervised training for nnU-Net v2.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    modules = {}
    for verb, purpose in VERBS.items():
        modules[verb] = importlib.import_module(f"nnunet_ssl.commands.{verb}")
        modules[verb].add_arguments(verbs.add_parser(verb, help=purpose, description=modules[verb].__doc__))
    options = parser.parse_args(arguments)
    try:
        code = modules[options.verb].run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return 141
    except KeyboardInterrupt:
        print(f"nnunet_ssl {options.verb}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"nnunet_ssl {options.verb}: {error}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    return code
