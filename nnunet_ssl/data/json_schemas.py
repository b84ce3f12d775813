"""What is in the JSON files that nnU-Net and this package read; a message names file, key, and what was found there.

Keys that are not listed are nnU-Net's, or somebody's, and stay.
"""

import difflib
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from nnunet_ssl.data.names import checked_ending, checked_name
from nnunet_ssl.data.patterns import compile_pattern

Content = TypeVar("Content")
NEAR_KEY = 0.8  # how like it, by difflib's ratio, an unknown key is taken for a misspelling
WORDS = {  # of pydantic, in ours
    "dict_type": "is not an object with names and values",
    "model_type": "is not an object with names and values",
    "list_type": "is no list",
    "string_type": "is no text",
    "int_type": "is no whole number",
    "float_type": "is no number",
    "bool_type": "is neither true nor false",
    "greater_than": "is not more than {gt:g}",
    "greater_than_equal": "is less than {ge:g}",
    "too_short": "has fewer than {min_length} entries",
    "too_long": "has more than {max_length} entries",
}


def without_repeats(cases: list[str]) -> list[str]:
    """Return a list of cases; a ValueError names one that stands in it twice."""
    if twice := [case for case, number in Counter(cases).items() if number > 1]:
        raise ValueError(f"names {twice[0]} twice")
    return cases


def label_value(value: object) -> object:
    """Return the value of a label or region; a ValueError if it is no whole number, and no list of them."""
    values = value if isinstance(value, list) and value else [value]
    if not all(type(one) is int for one in values):
        raise ValueError(f'is neither a whole number nor a list of them, as in {{"organ": 1}}, got {value!r:.60}')
    return value


def with_one_ignored(labels: dict[str, Any]) -> dict[str, Any]:
    """Return labels; a ValueError if several values are to be ignored."""
    if isinstance(labels.get("ignore"), list):
        raise ValueError(f"'ignore' is one whole number, got {labels['ignore']!r:.60}")
    return labels


def checked_pattern(pattern: object) -> object:
    """Return a pattern; a ValueError if it is no regular expression."""
    compile_pattern(pattern)
    return pattern


Name = Annotated[str, AfterValidator(checked_name)]
Cases = Annotated[list[Name], AfterValidator(without_repeats)]
Label = Annotated[Any, AfterValidator(label_value)]


class Entry(BaseModel):
    """An object of which some keys are known."""

    model_config = ConfigDict(extra="allow", strict=True)


class Fold(Entry):
    """A fold of splits_final.json."""

    train: Cases
    val: Cases
    unlabeled: Cases = []


class FilesElsewhere(Entry):
    """A case under the key `dataset` of dataset.json."""

    images: Annotated[list[str], Field(min_length=1)]
    label: str


class DatasetJson(Entry):
    """nnU-Net's dataset.json, with what this package reads of it."""

    labels: Annotated[dict[str, Label], AfterValidator(with_one_ignored)]
    file_ending: Annotated[str, AfterValidator(checked_ending)]
    dataset: Annotated[dict[Name, FilesElsewhere], Field(min_length=1)] | None = None
    patient_pattern: Annotated[Any, BeforeValidator(checked_pattern)] = None
    border_images: NonNegativeInt = 0


class Configuration(Entry):
    """A configuration of nnU-Net's plans, with what it inherits."""

    data_identifier: Name
    preprocessor_name: str
    patch_size: Annotated[list[PositiveInt], Field(min_length=2, max_length=3)]
    batch_size: PositiveInt
    spacing: Annotated[list[PositiveFloat], Field(min_length=2, max_length=3)]
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    resampling_fn_data: str
    resampling_fn_data_kwargs: dict[str, Any]


class Plans(Entry):
    """nnU-Net's plans."""

    dataset_name: Name
    plans_name: Name
    configurations: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    image_reader_writer: str
    transpose_forward: list[int]
    foreground_intensity_properties_per_channel: dict[str, dict[str, Any]]


class Adopted(Entry):
    """What adopted.json notes of a case."""

    on: str
    finished: bool


class Origin(Entry):
    """What origin.json says of a case: whose its label is."""

    label: str


class Origins(Entry):
    """origin.json of a data set with pseudo-labels."""

    cases: dict[Name, Origin] = {}


class Predicted(Entry):
    """A line of finished.jsonl: what `nnunet_ssl pseudolabel` has done."""

    case: Name
    marks: Annotated[list[Any], Field(min_length=1)]
    label: str | None = None
    uncertainty: Annotated[dict[str, Any], Field(min_length=1)]
    volumes_ml: dict[str, float]


# Keys of dataset.json that may be left out: a misspelled one would be overlooked.
OPTIONAL = ("patient_pattern", "border_images", "regions_class_order", "overwrite_image_reader_writer")
JOURNAL = TypeAdapter(dict[Name, Adopted])


def refuse_unfit(content: object, schema: type[Entry] | TypeAdapter, file: str | Path) -> None:
    """Compare content with a schema.

    Args:
        content: as json gives it.
        schema: what it has to be.
        file: what messages call it.

    Raises:
        ValueError: it is something else; file, key, and what stands there are named.
    """
    try:
        schema.validate_python(content) if isinstance(schema, TypeAdapter) else schema.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{file}{sentence(error)}") from None


def refuse_misspelled(dataset_json: dict[str, Any], file: str | Path) -> None:
    """Raise a ValueError if a dataset.json has a key that nearly is one of the optional ones."""
    for key in sorted(dataset_json.keys() - {*OPTIONAL}):
        if near := difflib.get_close_matches(key.lower(), OPTIONAL, n=1, cutoff=NEAR_KEY):
            raise ValueError(f"{file} has the key {key!r}, which nobody reads: write {near[0]!r}")


def sentence(error: ValidationError) -> str:
    """Return, to stand after a file's name, the first thing that is wrong: place, what is wrong, what was found."""
    first = error.errors(include_url=False)[0]
    place = [part for part in first["loc"] if part != "[key]"]
    if first["type"] == "missing":
        return f"{where(place[:-1])} has no key {place[-1]!r}"
    if first["type"] == "value_error":
        text = str(first["ctx"]["error"])
        return f"{where(place)}{' ' if text[0].isalpha() else ': '}{text}"
    words = WORDS.get(first["type"], f"is wrong ({first['msg']})").format(**first.get("ctx", {}))
    return f"{where(place)} {words}: {first['input']!r:.60}"


def where(place: list[str | int]) -> str:
    """Return a place in a file, to stand after its name."""
    words = [f"entry {part}" if isinstance(part, int) else repr(part) for part in place]
    return f": {', '.join(words)}" if words else ""


def read_if_fit(file: Path, kind: type[Content]) -> Content | None:
    """Return what a file of ours holds, of the types that are given; None if it is missing, cut off or another's."""
    try:
        return adapter_of(kind).validate_json(file.read_bytes(), strict=True)
    except (FileNotFoundError, ValueError):
        return None


@cache
def adapter_of(kind: type) -> TypeAdapter:
    """Return what compares content with a type; it is made once, which takes longer than to compare."""
    return TypeAdapter(kind)


def parsed(text: str | bytes) -> Any:  # noqa: ANN401 - any JSON
    """Return what a text in JSON says; a ValueError if it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
