"""A data set converted before its converter was fixed is named; any other is not."""

from importlib import import_module

import pytest

from nnunet_ssl.commands.convert import CONVERTERS
from nnunet_ssl.conversion.raw_dataset import Description
from nnunet_ssl.data.older_conversions import FAULTS, current_version, older_conversion

OLD = {"name": "HC18", "converted_by": "nnunet_ssl", "converter_version": 1}


@pytest.mark.parametrize("content", [OLD, {key: OLD[key] for key in ("name", "converted_by")}])
def test_sentence_says_what_is_wrong_and_how_to_fix_it(content):
    sentence = older_conversion(content)
    assert sentence.startswith("HC18 was converted by an older version of the converter (1, now 2): ")
    assert "1.1 mm too long" in sentence
    assert "nnunet_ssl convert HC18 -i FOLDER --overwrite" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "content",
    [
        OLD | {"converter_version": 2},
        OLD | {"converter_version": 3},
        OLD | {"converted_by": "somebody"},
        OLD | {"name": "ACDC"},
        {"name": "HC18"},
        {"converted_by": "nnunet_ssl"},
        {},
    ],
)
def test_other_data_sets_are_not_named(content):
    assert older_conversion(content) is None


def test_all_faults_since_a_version_are_named(monkeypatch):
    monkeypatch.setitem(FAULTS, "HC18", ("first fault", "second fault", "third fault"))
    assert "(2, now 4): second fault; third fault;" in older_conversion(OLD | {"converter_version": 2})


@pytest.mark.parametrize("name", CONVERTERS)
def test_converter_and_table_agree_on_the_version(name):
    converter = import_module(f"nnunet_ssl.dataset_conversion.{CONVERTERS[name]}")
    descriptions = [value for value in vars(converter).values() if isinstance(value, Description)]
    assert descriptions
    for description in descriptions:
        assert (description.name, description.version) == (name, current_version(name))
    assert set(FAULTS) <= set(CONVERTERS)
