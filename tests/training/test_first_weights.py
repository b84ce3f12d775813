"""Which checkpoints a run starts from, as options and as the words of its command."""

import pytest

from nnunet_ssl.training.first_weights import PRETRAINED, FirstWeights, given_in

TRAIN = ["nnUNetv2_train", "27", "3d_fullres", "0", "-p", "nnUNetPlans", "-tr", "nnUNetTrainerSSL"]


@pytest.mark.parametrize("words", [["-pretrained_weights", "a b.pth"], ["-pretrained", "a b.pth"], ["-pr=a b.pth"]])
def test_the_weights_of_nnunets_argument_are_found_as_argparse_finds_them(words):
    assert [*given_in([*TRAIN, *words, "--npz"])] == [(PRETRAINED, "a b.pth")]


@pytest.mark.parametrize("words", [[], ["-p", "preprocessed"], ["-num_gpus", "2"]])
def test_other_words_are_no_weights(words):
    assert [*given_in([*TRAIN, *words])] == []


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.pth"):
        FirstWeights.of({}, [*TRAIN, PRETRAINED, str(tmp_path / "nowhere.pth")], tmp_path)
