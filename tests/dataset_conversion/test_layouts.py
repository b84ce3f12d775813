"""A folder near the one that was named, which has the layout, is named: to be copied."""

import pytest

from nnunet_ssl.commands.cli import main

FILES = {
    "ACDC": ["data/patient003_frame01_slice_1.h5"],
    "LA": ["Training Set/06SR5RBREL16DQ6M8LWS/lgemri.nrrd", "Testing Set/XYZ/lgemri.nrrd"],
    "PancreasCT": ["Pancreas-CT/PANCREAS_0001/1/2/1.dcm", "labels/label0001.nii.gz"],
    "HC18": ["training_set/000_HC.png"],
    "PSFHS": ["image_mha/00001.mha", "label_mha/00001.mha"],
    "BraTS19": ["HGG/BraTS19_A/BraTS19_A_flair.nii", "LGG/BraTS19_B/BraTS19_B_flair.nii"],
}


def place(converter, folder):
    for name in FILES[converter]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def message(converter, source, capsys):
    assert main(["convert", converter, "-i", str(source)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nnunet_ssl convert {converter}: {source} has no known layout of ")
    return line


@pytest.mark.parametrize("converter", ["ACDC", "HC18", "PSFHS"])  # the others look at any depth
@pytest.mark.parametrize("inside", ["download", "my data", "down/load"])
def test_sub_folder_is_named(raw, source, converter, inside, capsys):
    folder = place(converter, source / inside)
    quoted = f"'{folder}'" if " " in inside else folder
    assert message(converter, source, capsys).endswith(f"; {folder} has: -i {quoted}")


@pytest.mark.parametrize(
    ("converter", "inside"),
    [
        ("ACDC", "empty"),
        ("LA", "Testing Set"),
        ("PancreasCT", "labels"),
        ("PancreasCT", "Pancreas-CT"),
        ("HC18", "training_set"),
        ("PSFHS", "image_mha"),
        ("BraTS19", "HGG"),
    ],
)
def test_folder_above_is_named(raw, source, converter, inside, capsys):
    place(converter, source)
    (source / inside).mkdir(exist_ok=True)
    assert message(converter, source / inside, capsys).endswith(f"; {source} has: -i {source}")


def test_patients_folder_leads_to_the_one_above(raw, source, capsys):
    folder = source / "training" / "patient003"
    folder.mkdir(parents=True)
    assert message("ACDC", folder, capsys).endswith(f"; {folder.parent} has: -i {folder.parent}")


def test_several_sub_folders_are_named(raw, source, capsys):
    first, second = (place("PSFHS", source / name) for name in ("a", "b"))
    assert message("PSFHS", source, capsys).endswith(f"; {first} has: -i {first}, {second} has: -i {second}")


@pytest.mark.parametrize("converter", FILES)
def test_folder_of_another_data_set_is_not_named(raw, source, converter, capsys):
    for other in FILES:
        if other != converter:
            place(other, source / other)
    (source / "named").mkdir()
    assert "-i" not in message(converter, source / "named", capsys)


@pytest.mark.parametrize("converter", FILES)
def test_folder_too_deep_is_not_looked_for(raw, source, converter, capsys):
    place(converter, source / "a" / "b" / "c" / "d" / "e")
    (source / "named").mkdir()
    assert "-i" not in message(converter, source / "named", capsys)
