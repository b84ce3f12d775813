"""Options of a run: `nnUNet_ssl_options="consistency_weight=5 num_epochs=300 seed=1"`."""

import ast
import inspect
import math
import shlex
import textwrap
from collections.abc import Callable, Mapping

Option = bool | int | float | str

ENVIRONMENT_VARIABLE = "nnUNet_ssl_options"

# nnU-Net's own settings that a run may change. nnU-Net assigns them in its constructor.
HOST_SETTINGS: dict[str, type] = {
    "num_epochs": int,
    "num_iterations_per_epoch": int,
    "num_val_iterations_per_epoch": int,
    "save_every": int,
    "initial_lr": float,
    "weight_decay": float,
    "oversample_foreground_percent": float,
}
# What a value may be, by the ending of its name.
FRACTIONS = ("_duration", "_fraction", "_decay", "_threshold", "_probability", "_dropout", "_box", "_percent")
RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (FRACTIONS, "a fraction in [0, 1]", lambda value: 0.0 <= value <= 1.0),
    (("_side", "_share"), "a fraction in (0, 1]", lambda value: 0.0 < value <= 1.0),
    (("_weight", "_minutes"), "0 or more", lambda value: value >= 0.0),
    (("_concentration", "_seconds", "temperature"), "more than 0", lambda value: value > 0.0),
)
MAY_BE_ZERO = ("seed", "_per_axis", "_rounds")  # other whole numbers count what there has to be
OF_ONE_START = ("replace",)  # of this call alone, and of no run
MAY_CHANGE = ("checkpoint_minutes", "worker_seconds")  # in a run that goes on: nothing that is trained depends on them
NUMBERS = tuple(ending for endings, _, _ in RANGES for ending in endings)  # need not be whole: `_weight = 1` takes 0.5


def allowed_options(trainer: type, host: type) -> dict[str, type]:
    """Return the options of a trainer class and their types.

    These are nnU-Net's settings above and the public class attributes in lowercase of the classes between `trainer` and
    `host`, nnU-Net's own trainer. An attribute that is None takes its type from its annotation; one whose name ends as
    those of fractions and weights is a number that need not be whole. What is in UPPERCASE is a fact of the method.
    """
    allowed = dict(HOST_SETTINGS)
    ours = [cls for cls in trainer.__mro__ if issubclass(cls, host) and cls is not host]
    for cls in reversed(ours):
        annotations = inspect.get_annotations(cls)  # before the loop: it may add to what the class has
        for name, value in vars(cls).items():
            if name.startswith("_") or name.isupper() or name in HOST_SETTINGS:
                continue
            if value is None and name in annotations:
                allowed[name] = _type_of_annotation(cls, name)
            elif isinstance(value, bool | int | float | str):
                is_number = type(value) is int and name.endswith(NUMBERS)
                allowed[name] = float if is_number else type(value)
    return allowed


def host_defaults(host: type) -> dict[str, object]:
    """Return the settings that nnU-Net's constructor assigns, which only its source tells without data and plans."""
    source = ast.parse(textwrap.dedent(inspect.getsource(host.__init__)))
    assignments = [node for node in ast.walk(source) if isinstance(node, ast.Assign)]
    return {
        target.attr: node.value.value
        for node in assignments
        for target in node.targets
        if isinstance(target, ast.Attribute) and target.attr in HOST_SETTINGS and isinstance(node.value, ast.Constant)
    }


def settings_of(trainer: object, host: type) -> dict[str, Option | None]:
    """Return what a trainer that is not initialised is set to without options, by name.

    nnU-Net's own settings are those of the class, otherwise those that a constructor has assigned; the others those of
    a constructor, which variants of nnU-Net's trainer often have, otherwise those of the class.
    """
    cls, assigned = type(trainer), vars(trainer)
    settings = {}
    for name in allowed_options(cls, host):
        of_class = {name: getattr(cls, name)} if hasattr(cls, name) else {}
        both = assigned | of_class if name in HOST_SETTINGS else of_class | assigned
        settings |= {name: both[name]} if name in both else {}
    return settings


def parse_options(text: str, allowed: Mapping[str, type]) -> dict[str, Option]:
    """Read "name=value name=value".

    Raises:
        ValueError: something that is not name=value, an unknown or repeated name, a value of the wrong type.
    """
    options: dict[str, Option] = {}
    for item in _words(text):
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"{ENVIRONMENT_VARIABLE} is written as name=value name=value, got {item!r}")
        if name not in allowed:
            names = ", ".join(sorted(allowed))
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: unknown option {name!r}; allowed are {names}")
        if name in options:
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: option {name!r} is given twice")
        options[name] = _parse(name, value, allowed[name])
    return options


def check_ranges(options: Mapping[str, Option | None]) -> None:
    """Check what a name promises: a fraction, a weight; that the smallest of something is not more than the largest.

    Raises:
        ValueError: a value outside of its range.
    """
    for name, value in options.items():
        for endings, expected, is_right in RANGES:
            if value is not None and name.endswith(endings) and not is_right(value):
                raise ValueError(f"{name} is {expected}, got {value}")
    for name, value in options.items():
        other = name.replace("smallest_", "largest_", 1)
        if name.startswith("smallest_") and value > options.get(other, value):
            raise ValueError(f"{name}={value} is more than {other}={options[other]}")


def merge_options(
    stored: Mapping[str, Option], given: Mapping[str, Option] | None, defaults: Mapping[str, Option | None]
) -> dict[str, Option]:
    """Return the options of a run that goes on: the stored ones, with nothing changed but a larger `num_epochs`.

    Args:
        stored: the options of the checkpoint.
        given: the options of this call, of which only those that differ from the run's matter; None is none.
        defaults: the values without options; None where there is none.

    Raises:
        ValueError: an option that is given differs from what the run was started with.
    """
    given = of_run(given or {})
    for name, now in sorted(given.items()):
        if name in MAY_CHANGE:
            continue
        before = stored.get(name, defaults.get(name))
        if before != now and not (name == "num_epochs" and now > before):
            with_what = f"without {name}" if before is None else f"with {name}={before}"
            raise ValueError(
                f"this run was started {with_what}, now {ENVIRONMENT_VARIABLE} says {name}={now}; a run goes on with "
                f"its own options (only num_epochs may grow): leave {name} out of {ENVIRONMENT_VARIABLE}, or train "
                "without --c"
            )
    return {**stored, **given}


def of_run(options: Mapping[str, Option]) -> dict[str, Option]:
    """Return the options that a run keeps."""
    return {name: value for name, value in options.items() if name not in OF_ONE_START}


def _words(text: str) -> list[str]:
    """Split at spaces outside of quotes; a backslash is part of a Windows path."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="")
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        return list(lexer)
    except ValueError:
        raise ValueError(f"{ENVIRONMENT_VARIABLE} has a quotation mark that is not closed: {text}") from None


def _type_of_annotation(cls: type, name: str) -> type:
    kinds = {f"{kind.__name__} | None": kind for kind in (bool, int, float, str)}
    annotation = inspect.get_annotations(cls)[name]
    annotation = annotation if isinstance(annotation, str) else str(annotation)
    if annotation not in kinds:
        raise TypeError(f"{cls.__name__}.{name}: {annotation} is none of {', '.join(kinds)}")
    return kinds[annotation]


def _parse(name: str, value: str, kind: type) -> Option:
    try:
        parsed = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{ENVIRONMENT_VARIABLE}: {name} takes {expected}, got {value!r}") from None
    if kind is float and not math.isfinite(parsed):
        raise ValueError(f"{ENVIRONMENT_VARIABLE}: {name} takes a finite number, got {value!r}")
    smallest = 0 if name.endswith(MAY_BE_ZERO) else 1
    if kind is int and parsed < smallest:
        raise ValueError(f"{ENVIRONMENT_VARIABLE}: {name} is at least {smallest}, got {value!r}")
    return parsed
