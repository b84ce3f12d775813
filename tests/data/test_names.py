import pytest

from nnunet_ssl.data.names import checked_ending, checked_name, problem_of_name


@pytest.mark.parametrize(
    "name", ["case_1", "a.b", "..a", "patient 1", "Ärztin", "nnUNetPlans_3d_fullres", "-x", "a..b"]
)
def test_names(name):
    assert problem_of_name(name) is None
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "/etc/passwd",
        "a/",
        "./a",
        "a\\b",
        "..\\a",
        "C:a",
        "C:\\a",
        "\\\\host\\a",
        "a\0",
        "a\nb",
    ],
)
def test_what_leads_out_of_a_folder(name):
    with pytest.raises(ValueError, match="is no name|is a path|has signs"):
        checked_name(name)


@pytest.mark.parametrize("ending", [".nii.gz", ".png", ".b2nd"])
def test_endings(ending):
    assert checked_ending(ending) == ending


@pytest.mark.parametrize("ending", ["", "nii", ".", "..", "./../x", "./x", ".nii/..", ".\\x", ".a\0"])
def test_endings_that_are_none(ending):
    with pytest.raises(ValueError, match="with its dot|is a path|has signs"):
        checked_ending(ending)
