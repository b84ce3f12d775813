"""Names of what a network predicts."""

import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ssl.training.observer import channel_names

REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}


@pytest.mark.parametrize(
    "labels", [{"first": 1, "second": 2}, {"first": [1], "second": [2]}, {"second": 2, "first": 1}]
)
def test_a_label_names_the_channel_of_its_value(labels):
    content = {"background": 0} | labels | {"ignore": 3}
    manager = LabelManager(content, None)
    assert channel_names({"labels": content}, manager.has_regions) == {1: "first", 2: "second"}
    assert manager.foreground_labels == [1, 2]


def test_a_region_names_its_place():
    manager = LabelManager(REGIONS, [1, 2])
    assert channel_names({"labels": REGIONS}, manager.has_regions) == {0: "whole", 1: "core"}
    assert manager.foreground_regions == [(1, 2), (2,)]
