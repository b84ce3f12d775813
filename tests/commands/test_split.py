import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import tifffile
from skimage import io

from nnunet_ssl.commands.cli import main
from nnunet_ssl.splits.protocols import load_benchmark

PATIENTS = [*load_benchmark("acdc").train, *load_benchmark("acdc").validation]


@pytest.fixture
def acdc(tmp_path, monkeypatch):
    """Return a raw data set with one case for each patient of the published lists; class 3 is rare."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "raw" / "Dataset027_ACDC"
    for name in ("imagesTr", "labelsTr", "imagesUn"):
        (folder / name).mkdir(parents=True)
    for index, patient in enumerate(PATIENTS):
        labels = np.array([[0, 1], [2, 3 if index % 10 == 0 else 0]], np.uint8)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), str(folder / f"labelsTr/{patient}_frame01.nii.gz"))
        (folder / "imagesTr" / f"{patient}_frame01_0000.nii.gz").touch()
    for patient in ("patient099", "patient028"):  # a phase of a training and one of a validation patient
        (folder / "imagesUn" / f"{patient}_frame05_0000.nii.gz").touch()
    labels = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "cineMRI"},
                "file_ending": ".nii.gz",
                "numTraining": 80,
                "labels": labels,
                "patient_pattern": r"^(patient\d+)",
            }
        )
    )
    return folder


def splits_of(raw) -> list[dict]:
    file = raw.parent.parent / "preprocessed" / raw.name / "splits_final.json"
    return json.loads(file.read_text())


@pytest.mark.parametrize("dataset", [["27"], ["-d", "27"]])
def test_published_split(acdc, capsys, dataset):
    assert main(["split", *dataset, "--protocol", "acdc-7"]) == 0
    (split,) = splits_of(acdc)
    assert {case[:10] for case in split["train"]} == set(PATIENTS[:7])
    assert {case[:10] for case in split["val"]} == set(PATIENTS[70:])
    assert len(split["unlabeled"]) == 63
    out = capsys.readouterr().out
    assert "train.list, val.list, test.list of SSL4MIS" in out
    assert "fold 0: 7 labeled, 10 validation, 63 unlabeled cases of 7, 10, 63 patients; hash " in out
    assert "not in this split, 2 cases: patient028_frame05, patient099_frame05" in out


def test_imagesun_is_added_without_validation_and_test_patients(acdc):
    (acdc / "imagesUn" / "patient011_frame05_0000.nii.gz").touch()
    assert main(["split", "27", "--protocol", "acdc-7", "--add-imagesUn", "--allow-missing"]) == 0
    assert [case for case in splits_of(acdc)[0]["unlabeled"] if "frame05" in case] == ["patient099_frame05"]


def test_phases_of_test_patients_are_left_out(acdc):
    (acdc / "imagesTs").mkdir()
    (acdc / "imagesTs" / "patient101_frame01_0000.nii.gz").touch()
    for patient in ("patient101", "patient102"):
        (acdc / "imagesUn" / f"{patient}_frame05_0000.nii.gz").touch()
    assert main(["split", "27", "--labeled", "5"]) == 0
    for split in splits_of(acdc):
        assert "patient102_frame05" in split["unlabeled"]
        assert "patient101_frame05" not in split["unlabeled"]


def test_seeded_split_by_patient(acdc):
    assert main(["split", "27", "--labeled", "10%", "--folds", "4", "--seed", "3"]) == 0
    splits = splits_of(acdc)
    assert len(splits) == 4
    for split in splits:
        assert (len(split["train"]), len(split["val"])) == (6, 20)
        rare = {f"{patient}_frame01" for patient in PATIENTS[::10]}
        assert set(split["train"]) & rare
        validated = {case[:10] for case in split["val"]}
        assert not validated & {case[:10] for case in split["unlabeled"]}


def test_seeded_split_of_one_fold_can_be_hidden(acdc):
    assert main(["split", "27", "--labeled", "5", "--folds", "1", "--hide"]) == 0
    (split,) = splits_of(acdc)
    assert (len(split["train"]), len(split["val"])) == (5, 16)
    hidden = {file.name.removesuffix(".nii.gz") for file in (acdc / "labelsHidden").iterdir()}
    assert hidden == {case for case in split["unlabeled"] if "frame05" not in case}


def test_ids_of_test_cases_need_not_fit_the_pattern(acdc):
    (acdc / "imagesTs").mkdir()
    (acdc / "imagesTs" / "external_1_0000.nii.gz").touch()
    assert main(["split", "27", "--labeled", "5", "--group-by", r"^(patient\d+)"]) == 0


def test_interrupted_hiding_is_noticed(acdc, capsys):
    (acdc / "labelsHidden").mkdir()
    (acdc / "labelsTr" / "patient099_frame01.nii.gz").rename(acdc / "labelsHidden" / "patient099_frame01.nii.gz")
    assert main(["split", "27", "--labeled", "5"]) == 2
    assert "patient099_frame01: needed with a label, but there is none in labelsTr: --unhide" in capsys.readouterr().err


def test_fold_without_unlabeled_cases_is_said(acdc, capsys):
    for file in (acdc / "imagesUn").iterdir():
        file.unlink()
    assert main(["split", "27", "--labeled", "100%"]) == 0
    assert "There is a fold without unlabeled cases: only nnUNetTrainer can train on it." in capsys.readouterr().out


def test_hidden_and_brought_back(acdc, capsys):
    assert main(["split", "27", "--protocol", "acdc-3", "--hide"]) == 0
    assert len(list((acdc / "labelsTr").iterdir())) == 13
    assert len(list((acdc / "labelsHidden").iterdir())) == 67
    assert json.loads((acdc / "dataset.json").read_text())["numTraining"] == 13
    assert "67 labels hidden in" in capsys.readouterr().out
    assert main(["split", "27", "--protocol", "acdc-3", "--hide"]) == 0  # again: nothing is left to do
    assert main(["split", "27", "--protocol", "acdc-7", "--overwrite"]) == 2
    assert "needed with a label, but there is none in labelsTr: --unhide" in capsys.readouterr().err
    assert main(["split", "27", "--unhide"]) == 0
    assert len(list((acdc / "labelsTr").iterdir())) == 80
    assert "67 labels are back" in capsys.readouterr().out


ONE_FOLD = ["split", "27", "--folds", "1", "--overwrite"]


def hidden_in(raw) -> set[str]:
    return {file.name.removesuffix(".nii.gz") for file in (raw / "labelsHidden").glob("*.nii.gz")}


@pytest.mark.parametrize("order", [("10%", "20%"), ("20%", "10%"), ("3", "40%", "7"), ("30", "100%")])
def test_what_is_hidden_does_not_change_a_split(acdc, order):
    """A split is a function of the words and of all cases with a label: the same, hidden before or not."""
    fresh = {}
    for labeled in order:
        assert main([*ONE_FOLD, "--labeled", labeled]) == 0
        fresh[labeled] = splits_of(acdc)
    for labeled in order:
        assert main([*ONE_FOLD, "--labeled", labeled, "--hide"]) == 0
        assert splits_of(acdc) == fresh[labeled]
        ((split,),) = (splits_of(acdc),)
        assert hidden_in(acdc) == {case for case in split["unlabeled"] if "frame05" not in case}
    validated = [split["val"] for (split,) in fresh.values()]
    assert all(val == validated[0] for val in validated)


def test_a_second_hiding_brings_back_exactly_what_it_needs(acdc, capsys):
    assert main([*ONE_FOLD, "--labeled", "5", "--hide"]) == 0
    before, (first,) = hidden_in(acdc), splits_of(acdc)
    capsys.readouterr()
    assert main([*ONE_FOLD, "--labeled", "7", "--hide"]) == 0
    (second,) = splits_of(acdc)
    needed = sorted(set(second["train"]) - set(first["train"]))
    assert len(needed) == 2
    assert before - hidden_in(acdc) == set(needed)
    assert f"2 labels are back in {acdc / 'labelsTr'}, because this split needs them: {', '.join(needed)}" in (
        out := capsys.readouterr().out
    )
    assert "0 labels hidden" in out
    assert all((acdc / "imagesTr" / f"{case}_0000.nii.gz").exists() for case in needed)
    assert main(["split", "27", "--protocol", "acdc-14", "--overwrite", "--hide"]) == 0
    assert len(splits_of(acdc)[0]["train"]) == 14


def test_unlabeled_images_change_only_the_unlabeled_list(acdc):
    assert main(["split", "27", "--labeled", "10%"]) == 0
    before = splits_of(acdc)
    for name in ("patient001_frame09", "patient555_frame01", "external-1"):
        (acdc / "imagesUn" / f"{name}_0000.nii.gz").touch()
    assert main(["split", "27", "--labeled", "10%", "--overwrite"]) == 0
    for old, new in zip(before, splits_of(acdc), strict=True):
        assert (old["train"], old["val"]) == (new["train"], new["val"])
        assert {"patient555_frame01", "external-1"} <= set(new["unlabeled"]) - set(old["unlabeled"])


@pytest.mark.parametrize("stop", range(0, 60, 4))
def test_interrupted_anywhere_the_same_words_finish_it(acdc, monkeypatch, stop):
    """Stopped before any single operation on a file."""
    words = [*ONE_FOLD, "--labeled", "70%", "--hide"]
    done = 0

    def counted(operation):
        def run(*arguments, **more):
            nonlocal done
            if done == stop:
                raise KeyboardInterrupt
            done += 1
            return operation(*arguments, **more)

        return run

    with monkeypatch.context() as patched:
        for name in ("rename", "replace", "mkdir", "unlink"):
            patched.setattr(Path, name, counted(getattr(Path, name)))
        code = main(words)
    assert code == (130 if done == stop else 0)
    assert main(words) == 0
    (split,) = splits_of(acdc)
    hidden = {case for case in split["unlabeled"] if "frame05" not in case}
    assert hidden_in(acdc) == hidden
    assert len(hidden) == 19
    assert json.loads((acdc / "dataset.json").read_text())["numTraining"] == 80 - 19
    assert main(["split", "27", "--unhide"]) == 0
    assert len(list((acdc / "imagesTr").iterdir())) == len(list((acdc / "labelsTr").iterdir())) == 80


def test_nothing_is_written_where_a_move_cannot_succeed(acdc, capsys):
    assert main([*ONE_FOLD, "--labeled", "70%"]) == 0
    before = splits_of(acdc)
    (acdc / "labelsHidden").mkdir()
    assert main([*ONE_FOLD, "--labeled", "5", "--seed", "3"]) == 0
    victim = splits_of(acdc)[0]["unlabeled"][0]
    (acdc / "labelsHidden" / f"{victim}.json").write_text("unrelated")
    (acdc / "imagesUn" / f"{victim}_0000.nii.gz").write_text("another image")
    assert main([*ONE_FOLD, "--labeled", "70%"]) == 0
    assert main([*ONE_FOLD, "--labeled", "5", "--seed", "3", "--hide"]) == 2
    assert f"{victim}_0000.nii.gz lies both in" in capsys.readouterr().err
    assert splits_of(acdc) == before
    assert hidden_in(acdc) == set()


def make_twins(raw, *cases: tuple[str, str], folders=("imagesTr", "imagesTr")) -> None:
    """Give pairs of cases one image, compressed differently."""
    rng = np.random.default_rng(0)
    for pair in cases:
        image = SimpleITK.GetImageFromArray(rng.normal(size=(3, 4, 5)).astype(np.float32))
        for level, (case, folder) in enumerate(zip(pair, folders, strict=True)):
            file = raw / folder / f"{case}_0000.nii.gz"
            file.parent.mkdir(exist_ok=True)
            SimpleITK.WriteImage(image, str(file), useCompression=True, compressionLevel=1 + 8 * level)


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_twins_are_on_one_side_of_a_random_split(acdc, capsys, seed):
    """patient074 and patient076 of ACDC are one scan with two annotations."""
    pairs = [("patient074_frame01", "patient076_frame01"), ("patient099_frame01", "patient004_frame01")]
    assert main(["split", "27", "--labeled", "10%", "--seed", seed]) == 0
    make_twins(acdc, *pairs)
    assert main(["split", "27", "--labeled", "10%", "--seed", seed, "--overwrite"]) == 0
    assert "kept on one side, because they hold identical images" in capsys.readouterr().out
    for split in splits_of(acdc):
        for pair in pairs:
            assert len({case in split["val"] for case in pair}) == 1
            assert len({case in split["train"] for case in pair}) == 1


@pytest.mark.parametrize("role", ["labeled", "validation", "test"])
def test_an_unlabeled_twin_of_a_published_list_is_left_out_and_named(acdc, capsys, role):
    assert main(["split", "27", "--protocol", "acdc-7"]) == 0
    (before,) = splits_of(acdc)
    unlabeled = before["unlabeled"][3]
    other = {"labeled": before["train"][0], "validation": before["val"][0], "test": "patient101_frame01"}[role]
    make_twins(acdc, (unlabeled, other), folders=("imagesTr", "imagesTs" if role == "test" else "imagesTr"))
    assert main(["split", "27", "--protocol", "acdc-7", "--overwrite"]) == 0
    (split,) = splits_of(acdc)
    assert (split["train"], split["val"]) == (before["train"], before["val"])
    assert set(before["unlabeled"]) - set(split["unlabeled"]) == {unlabeled}
    other += " (imagesTs)" if role == "test" else ""
    expected = f"left out, 1 unlabeled cases that are the same image as another case: {unlabeled} = {other}"
    assert expected in capsys.readouterr().out


def test_training_twins_of_a_published_list_stay_and_are_said(acdc, capsys):
    assert main(["split", "27", "--protocol", "acdc-7"]) == 0
    (before,) = splits_of(acdc)
    pair = (before["train"][0], before["val"][0])
    make_twins(acdc, pair)
    assert main(["split", "27", "--protocol", "acdc-7"]) == 0
    assert splits_of(acdc) == [before]
    out = capsys.readouterr().out
    assert "WARNING: fold 0: training cases are the same image as a validation case" in out
    assert " = ".join(sorted(pair)) in out
    assert "nnunet_ssl split Dataset027_ACDC --labeled 100% --overwrite" in out


def test_a_test_twin_of_a_labeled_case_is_said(acdc, capsys):
    assert main(["split", "27", "--protocol", "acdc-7"]) == 0
    case = splits_of(acdc)[0]["train"][0]
    make_twins(acdc, (case, "patient101_frame01"), folders=("imagesTr", "imagesTs"))
    for words in (["--protocol", "acdc-7"], ["--labeled", "7"]):
        assert main(["split", "27", "--overwrite", *words]) == 0
        expected = "WARNING: test cases are the same image as a training or validation case"
        assert f"{expected}: {case} = patient101_frame01 (imagesTs)" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["patient074", "patient099"])
def test_further_images_of_a_twin_stay_on_its_side(acdc, other):
    """patient076 is patient074 under another name: its other phases must not be unlabeled where it is validated on."""
    twin = "patient076" if other == "patient074" else "patient004"
    make_twins(acdc, (f"{other}_frame01", f"{twin}_frame01"))
    (acdc / "imagesUn" / f"{twin}_frame09_0000.nii.gz").touch()
    assert main(["split", "27", "--labeled", "5"]) == 0
    for split in splits_of(acdc):
        assert (f"{twin}_frame09" in split["unlabeled"]) == (f"{other}_frame01" not in split["val"])


@pytest.mark.parametrize("stop", range(1, 9))
def test_hiding_of_several_channels_is_finished_by_the_same_words(acdc, monkeypatch, stop):
    """Half of a case's channels lie in imagesUn then, which is no fault of their names."""
    content = json.loads((acdc / "dataset.json").read_text())
    names = {str(channel): f"phase {channel}" for channel in range(4)}
    (acdc / "dataset.json").write_text(json.dumps(content | {"channel_names": names}))
    for file in list((acdc / "imagesTr").iterdir()):
        for channel in range(1, 4):
            file.with_name(file.name.replace("_0000", f"_{channel:04d}")).touch()
    for file in (acdc / "imagesUn").iterdir():
        file.unlink()
    done, rename = 0, Path.rename

    def counted(self, target):
        nonlocal done
        if done == stop:
            raise KeyboardInterrupt
        done += 1
        return rename(self, target)

    words = [*ONE_FOLD, "--labeled", "5", "--hide"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", counted)
        assert main(words) == 130
    assert main(words) == 0
    assert len(list((acdc / "imagesUn").iterdir())) == 4 * len(hidden_in(acdc))


def test_what_is_not_used_of_imagesun_is_said(acdc, capsys):
    (acdc / "imagesUn" / "b_0000.nii").touch()
    (acdc / "imagesUn" / "sub").mkdir()
    assert main(["split", "27", "--labeled", "5"]) == 0
    assert "not used in" in (out := capsys.readouterr().out)
    assert "1 file(s) with the ending .nii, 1 sub-folder(s)" in out


def test_a_label_without_image_is_named(acdc, capsys):
    (acdc / "imagesTr" / "patient099_frame01_0000.nii.gz").unlink()
    assert main(["split", "27", "--labeled", "5", "--folds", "1", "--hide"]) == 2
    assert "patient099_frame01: with a label, but no image in imagesTr or imagesUn" in capsys.readouterr().err
    assert not (acdc / "labelsHidden").exists()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (5, "dataset.json: 'patient_pattern': "),
        ("(", "dataset.json: 'patient_pattern': "),
        ("sub-", "(patient_pattern of dataset.json): correct it there, or give another with --group-by REGEX"),
    ],
)
def test_a_patient_pattern_that_does_not_work_is_named_with_the_remedy(acdc, capsys, pattern, message):
    content = json.loads((acdc / "dataset.json").read_text())
    (acdc / "dataset.json").write_text(json.dumps(content | {"patient_pattern": pattern}))
    assert main(["split", "27", "--labeled", "5"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "elsewhere",
    [
        {},
        [],
        "far",
        {"a": []},
        {"a": {"images": ["x"]}},
        {"a": {"images": [], "label": "y"}},
        {"a": {"images": "x", "label": "y"}},
    ],
)
def test_a_key_dataset_that_is_not_nnunets_is_named(acdc, capsys, elsewhere):
    content = json.loads((acdc / "dataset.json").read_text())
    (acdc / "dataset.json").write_text(json.dumps(content | {"dataset": elsewhere}))
    assert main(["split", "27", "--labeled", "5"]) == 2
    assert f"{acdc / 'dataset.json'}: 'dataset'" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["site_0001", "site_0007"], ["scan_0003"], ["p_0000", "p_0001"]])
def test_images_that_are_no_channels_of_the_data_set_are_named(acdc, names, capsys):
    for name in names:
        (acdc / "imagesUn" / f"{name}.nii.gz").touch()
    assert main(["split", "27", "--labeled", "5"]) == 2
    assert f"if {names[-1]}.nii.gz is a case of its own, name it {names[-1]}_0000" in capsys.readouterr().err


def test_cases_that_lie_elsewhere_are_split_but_not_hidden(acdc, capsys):
    """nnU-Net's key `dataset` names the files of each case."""
    content = json.loads((acdc / "dataset.json").read_text())
    elsewhere = {
        f"{patient}_frame01": {
            "images": [f"far/{patient}_0000.nii.gz"],
            "label": f"labelsFar/{patient}_frame01.nii.gz",
        }
        for patient in PATIENTS
    }
    assert main(["split", "27", "--labeled", "5"]) == 0
    before = splits_of(acdc)
    (acdc / "labelsTr").rename(acdc / "labelsFar")
    (acdc / "dataset.json").write_text(json.dumps(content | {"dataset": elsewhere}))
    assert main(["split", "27", "--labeled", "5"]) == 0
    assert splits_of(acdc) == before
    assert main([*ONE_FOLD, "--labeled", "5", "--hide"]) == 2
    assert "lie where the key 'dataset' of its dataset.json says" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".png", ".tif", ".nrrd", ".nii"])
def test_any_format_that_nnunet_reads_is_split_and_hidden(acdc, ending):
    """Labels are read by the data set's own reader, and all files of a case move together."""
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        for file in (acdc / folder).iterdir():
            file.unlink()
    rng = np.random.default_rng(0)
    for number in range(10):
        for folder, name, voxels in (
            ("imagesTr", f"c{number}_0000", rng.integers(0, 99, (2, 6, 7), np.uint8)),
            ("labelsTr", f"c{number}", np.full((2, 6, 7), number % 2 + 1, np.uint8)),
        ):
            file = acdc / folder / f"{name}{ending}"
            if ending == ".png":
                io.imsave(file, voxels[0], check_contrast=False)
            elif ending == ".tif":
                tifffile.imwrite(file, voxels)
                (acdc / folder / f"c{number}.json").write_text(json.dumps({"spacing": [5, 1, 1]}))
            else:
                SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(file))
    content = json.loads((acdc / "dataset.json").read_text()) | {"file_ending": ending, "patient_pattern": "^(.+)$"}
    (acdc / "dataset.json").write_text(json.dumps(content))
    files = {path.name for path in acdc.rglob("*") if path.is_file()}
    assert main(["split", "27", "--labeled", "2", "--folds", "1", "--hide"]) == 0
    (split,) = splits_of(acdc)
    assert len({int(case[1]) % 2 for case in split["train"]}) == 2  # both classes are in the labeled part
    for case in split["unlabeled"]:
        assert (acdc / "imagesUn" / f"{case}_0000{ending}").exists()
        assert (acdc / "labelsHidden" / f"{case}{ending}").exists()
        assert not list((acdc / "labelsTr").glob(f"{case}.*"))
        assert not list((acdc / "imagesTr").glob(f"{case}*"))
    assert main(["split", "27", "--unhide"]) == 0
    assert {path.name for path in acdc.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_few_labeled_patients_have_folds_that_fit(acdc, number, capsys):
    for file in (acdc / "labelsTr").iterdir():
        if int(file.name[7:10]) not in [int(patient[7:]) for patient in PATIENTS[:number]]:
            file.unlink()
            image = acdc / "imagesTr" / file.name.replace(".nii.gz", "_0000.nii.gz")
            image.rename(acdc / "imagesUn" / image.name)
    assert main(["split", "27", "--labeled", "1"]) == 0
    splits = splits_of(acdc)
    assert len(splits) == number
    labeled = {f"{patient}_frame01" for patient in PATIENTS[:number]}
    assert {case for split in splits for case in split["val"]} == labeled
    for split in splits:
        assert len(split["train"]) == 1
        assert (split["train"] == split["val"]) == (number == 1)
        assert len(split["unlabeled"]) >= 80 - number
    out = capsys.readouterr().out
    assert ("no estimate" in out) == (number == 1)
    assert main(["split", "27", "--labeled", "1", "--folds", "5", "--overwrite"]) == 2
    assert "--folds is" in capsys.readouterr().err


def test_borders_of_consecutive_numbers_are_left_out(acdc, capsys):
    """Numbers without patients: two on each side of a border between validation and training are near-duplicates."""
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        for file in (acdc / folder).iterdir():
            file.unlink()
    for number in range(100, 140):
        labels = SimpleITK.GetImageFromArray(np.array([[0, 1], [2, 3]], np.uint8))
        SimpleITK.WriteImage(labels, str(acdc / f"labelsTr/{number}.nii.gz"))
        (acdc / f"imagesTr/{number}_0000.nii.gz").touch()
    content = json.loads((acdc / "dataset.json").read_text())
    more = {"patient_pattern": r"^(\d\d)\d$", "unit": "blocks of ten consecutive numbers", "border_images": 2}
    (acdc / "dataset.json").write_text(json.dumps(content | more))
    assert main(["split", "27", "--labeled", "1", "--folds", "4"]) == 0
    out = capsys.readouterr().out
    assert "cases of 1, 1, 2 blocks of ten consecutive numbers" in out
    for split in splits_of(acdc):
        validation, training = (set(map(int, split[key])) for key in ("val", "train"))
        training |= set(map(int, split["unlabeled"]))
        assert min(abs(a - b) for a in validation for b in training) == 5
        inner = min(validation) > 105 and max(validation) < 135
        assert len(validation) == (6 if inner else 8)


def consecutive(acdc, numbers, blocks=10, labels=True, **more) -> None:
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        for file in (acdc / folder).iterdir():
            file.unlink()
    for number in numbers:
        labels = SimpleITK.GetImageFromArray(np.array([[0, 1], [2, 3]], np.uint8))
        SimpleITK.WriteImage(labels, str(acdc / f"labelsTr/{number}.nii.gz"))
        (acdc / f"imagesTr/{number}_0000.nii.gz").touch()
    content = json.loads((acdc / "dataset.json").read_text())
    (acdc / "dataset.json").write_text(
        json.dumps(content | {"patient_pattern": r"^(\d\d)\d$", "border_images": 2} | more)
    )


def test_unlabeled_neighbours_change_no_border_and_stay_away_from_validation(acdc):
    consecutive(acdc, range(100, 140))
    assert main(["split", "27", "--labeled", "1", "--folds", "4"]) == 0
    before = splits_of(acdc)
    for name in (*range(90, 100), *range(140, 150), "hosp_a", "hosp_00101"):
        (acdc / "imagesUn" / f"{name}_0000.nii.gz").touch()
    assert main(["split", "27", "--labeled", "1", "--folds", "4", "--overwrite"]) == 0
    for old, new in zip(before, splits_of(acdc), strict=True):
        assert (old["train"], old["val"]) == (new["train"], new["val"])
        assert {"hosp_a", "hosp_00101"} < set(new["unlabeled"])
        distances = [abs(int(case) - int(other)) for case in new["unlabeled"] if case.isdigit() for other in new["val"]]
        assert min(distances) >= 5


def test_borders_that_leave_nothing_are_refused(acdc, capsys):
    consecutive(acdc, range(100, 110), patient_pattern="^(.+)$")
    assert main(["split", "27", "--labeled", "2", "--folds", "2"]) == 2
    assert "without the 2 cases on each side of a border" in capsys.readouterr().err
    consecutive(acdc, range(100, 140), border_images="2")
    assert main(["split", "27", "--labeled", "2", "--folds", "2"]) == 2
    assert "'border_images' is no whole number: '2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["27", "--protocol", "acdc-5"], "no protocol 'acdc-5', there are acdc-3"),
        (["27", "--protocol", "la-4"], "80 of la-4 are not here"),
        (["27", "--labeled", "ten"], "--labeled is a number of patients or a share such as 10%, got 'ten'"),
        (["27", "--labeled", "200%"], "--labeled is a number of patients or a share such as 10%, got '200%'"),
        (["27", "--labeled", "0"], "--labeled is a number of patients or a share such as 10%, got '0'"),
        (["27", "--labeled", "5", "--folds", "0"], "--folds is from 1 to 80"),
        (["27", "--labeled", "5", "--seed", "-1"], "--seed is from 0 to 4294967295, got -1"),
        (["27", "--labeled", "5", "--group-by", "frame"], "all cases with labels are of one group (patient), frame"),
        (["27", "--labeled", "5", "--allow-missing"], "--allow-missing does not apply to --labeled"),
        (["27", "--protocol", "acdc-7", "--seed", "3"], "--seed does not apply to --protocol"),
        (["27", "--unhide", "--hide"], "--hide does not apply to --unhide"),
        (["27", "--move-unlabeled", "--seed", "3"], "--seed does not apply to --move-unlabeled: leave it out"),
        (
            ["27", "--labeled", "5", "--hide"],
            "--hide needs the same unlabeled cases in every fold: take --folds 1, or a",
        ),
        (["27", "--labeled", "5", "--group-by", "("], "'(' is no regular expression"),
        (["27", "--labeled", "5", "--group-by", "sub-"], "the pattern 'sub-' does not occur in the case id patient"),
        (["26", "--labeled", "5"], "there is no data set '26' in nnUNet_raw="),
    ],
)
def test_wrong_use_is_one_sentence_and_nothing_is_written(acdc, arguments, message, capsys):
    assert main(["split", *arguments]) == 2
    assert f"nnunet_ssl split: {message}" in capsys.readouterr().err
    assert not (acdc.parent.parent / "preprocessed" / acdc.name).exists()
    assert not (acdc / "labelsHidden").exists()


def test_one_of_the_ways_must_be_named(acdc, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["split", "27"])
    assert "one of the arguments --protocol --labeled --unhide --move-unlabeled is required" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["27", "Dataset027_ACDC"])
def test_images_without_label_move_to_imagesun_and_it_is_said_what_is_next(acdc, given, capsys):
    for patient in PATIENTS[:3]:
        (acdc / "labelsTr" / f"{patient}_frame01.nii.gz").unlink()
    assert main(["split", given, "--move-unlabeled"]) == 0
    assert capsys.readouterr().out == (
        f"the images of 3 cases are in {acdc / 'imagesUn'} now; 77 labeled cases\n"
        "next: nnUNetv2_plan_and_preprocess -d 27 --verify_dataset_integrity\n"
    )
    assert len(list((acdc / "imagesUn").iterdir())) == 5
    assert json.loads((acdc / "dataset.json").read_text())["numTraining"] == 77
    assert main(["split", given, "--move-unlabeled"]) == 0
    assert capsys.readouterr().out.startswith(f"every image in {acdc / 'imagesTr'} has a label; 77 labeled cases\n")


def test_images_in_imagestr_without_a_label_are_named_with_the_command_that_moves_them(acdc, capsys):
    words = ["split", "27", "--labeled", "5"]
    assert main(words) == 0
    assert "in no split, because" not in capsys.readouterr().out
    (acdc / "imagesTr" / "patient200_frame01_0000.nii.gz").touch()
    assert main(words) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("in no split, because")]
    assert "in imagesTr without a label: patient200_frame01; " in line
    command = line.partition("nnunet_ssl ")[2]
    assert main(shlex.split(command)) == 0
    assert (acdc / "imagesUn" / "patient200_frame01_0000.nii.gz").exists()


def test_an_unlabeled_case_that_lacks_a_channel_is_refused(acdc, capsys):
    content = json.loads((acdc / "dataset.json").read_text()) | {"channel_names": {"0": "cine", "1": "late"}}
    (acdc / "dataset.json").write_text(json.dumps(content))
    for file in [*(acdc / "imagesTr").iterdir()]:
        file.with_name(file.name.replace("_0000", "_0001")).touch()
    assert main(["split", "27", "--labeled", "5"]) == 2
    assert "patient028_frame05: it has 1 channel(s), the data set has 2 (cine, late)" in capsys.readouterr().err


def test_where_nothing_is_hidden_nothing_comes_back(acdc, capsys):
    assert main(["split", "27", "--unhide"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "no label was hidden"
