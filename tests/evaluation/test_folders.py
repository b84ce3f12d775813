import csv
import json

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from skimage import io

from nnunet_ssl.commands.cli import main
from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.evaluation.folders import evaluate_folders
from nnunet_ssl.evaluation.structures import Structures

SPACING = (1.0, 1.0, 2.0)
STRUCTURES = Structures({"1": (1,), "2": (2,)}, ".nii.gz", DatasetReader.of_dataset({"file_ending": ".nii.gz"}))


def write(file, voxels, spacing=SPACING):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(voxels.astype(np.uint8))
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(file))


def cube(start: int, value: int = 1) -> np.ndarray:
    voxels = np.zeros((8, 12, 12))
    voxels[2:6, start : start + 4, 4:8] = value
    return voxels


@pytest.fixture
def folders(tmp_path):
    """Two cases: moved by one voxel of 1 mm along y, and a second structure that the prediction lacks."""
    for case, reference, prediction in (
        ("a", cube(2) + cube(7, 2), cube(3) + cube(8, 2)),
        ("b", cube(2) + cube(7, 2), cube(2)),
    ):
        write(tmp_path / "gt" / f"{case}.nii.gz", reference)
        write(tmp_path / "pred" / f"{case}.nii.gz", prediction)
    return tmp_path


def rows_of(file):
    with file.open(newline="") as opened:
        return {(row["case"], row["label"]): row for row in csv.DictReader(opened)}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_csv_and_summary(folders, processes, capsys):
    """By hand: 4x4x4 voxels of 2 mm³, moved by one: 48 common, Dice 0.75, Jaccard 0.6."""
    out = folders / "results" / "summary.csv"
    arguments = ["-gt", str(folders / "gt"), "-pred", str(folders / "pred"), "-o", str(out), "-np", processes]
    assert main(["evaluate", *arguments]) == 0
    rows = rows_of(out)
    assert list(rows) == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]
    assert list(rows["a", "1"]) == [
        "case", "label", "dice", "jaccard", "hd95", "asd", "assd", "nsd", "volume_gt_ml", "volume_pred_ml"
    ]  # fmt: skip
    assert [float(rows["a", "1"][name]) for name in ("dice", "jaccard", "hd95", "nsd")] == [0.75, 0.6, 1, 1]
    assert float(rows["a", "1"]["volume_gt_ml"]) == 0.128
    assert [rows["b", "2"][name] for name in ("dice", "hd95", "nsd", "volume_pred_ml")] == ["0", "nan", "0", "0"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][-3:] == ["empty_gt", "empty_pred", "distances_undefined"]
    assert lines[2][:5] == ["2", "2", "0.375", "±", "0.530"]
    assert lines[2][-3:] == ["0", "1", "1"]


def test_regions_and_ignore_label(folders):
    """With voxels of the ignore label left out of both, the whole of case b differs by its second structure."""
    reference = cube(2) + cube(7, 2)
    reference[:, 7:, 4:6] = 3
    write(folders / "gt" / "b.nii.gz", reference)
    content = {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "file_ending": ".nii.gz"}
    (folders / "dataset.json").write_text(json.dumps(content))
    structures = Structures.of_dataset(folders / "dataset.json")
    assert structures.values == {"whole": (1, 2), "core": (2,)}
    rows = {(r.case, r.label): r.metrics for r in evaluate_folders(folders / "gt", folders / "pred", structures)}
    assert rows["b", "whole"].dice == pytest.approx(2 * 64 / (64 + 32 + 64))
    assert rows["a", "core"].volume_gt_ml == pytest.approx(0.128)
    for name in ("hd95", "asd", "assd", "nsd", "volume_gt_ml", "volume_pred_ml"):
        assert np.isnan(getattr(rows["b", "whole"], name)), "nobody knows what is behind the ignored voxels"
        assert np.isfinite(getattr(rows["a", "whole"], name))


def without_prediction(folders):
    (folders / "pred" / "b.nii.gz").unlink()


def other_shape(folders):
    write(folders / "pred" / "b.nii.gz", cube(2)[1:])


def cut_off(folders):
    file = folders / "pred" / "b.nii.gz"
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_prediction, "1 of 2 references have no prediction in"),
        (other_shape, "b.nii.gz has the shape (7, 12, 12), its reference (8, 12, 12)"),
        (cut_off, "b.nii.gz is damaged"),
    ],
)
def test_faults_are_named_and_nothing_is_written(folders, damage, message, capsys):
    damage(folders)
    out = folders / "summary.csv"
    assert main(["evaluate", "-gt", str(folders / "gt"), "-pred", str(folders / "pred"), "-o", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-gt", "none"], "none is no folder"),
        (["-np", "0"], "-np is a number of processes, at least 1, got 0"),
        (["--tolerance", "-1"], "--tolerance is a distance in mm, at least 0, got -1.0"),
        (["--tolerance", "nan"], "--tolerance is a distance in mm, at least 0, got nan"),
        (["-gt", "."], "there is no reference CASE.nii.gz in ."),
    ],
)
def test_wrong_use_is_one_sentence(folders, arguments, message, capsys, monkeypatch):
    (folders / "empty").mkdir()
    monkeypatch.chdir(folders / "empty")
    assert main(["evaluate", "-gt", str(folders / "gt"), "-pred", str(folders / "pred"), *arguments]) == 2
    assert f"nnunet_ssl evaluate: {message}" in capsys.readouterr().err


def test_where_no_reference_has_a_prediction_leaving_out_is_not_offered(folders, capsys):
    for file in (folders / "pred").iterdir():
        file.rename(file.with_name(f"other_{file.name}"))
    (folders / "pred" / "predict_from_raw_data_args.json").touch()  # nnU-Net's, and no surprise there
    assert main(["evaluate", "-gt", str(folders / "gt"), "-pred", str(folders / "pred")]) == 2
    assert capsys.readouterr().err.strip().endswith(f"2 of 2 references have no prediction in {folders / 'pred'}: a, b")


def test_references_without_prediction_are_left_out_when_asked(folders, capsys):
    """nnU-Net's validation folder holds a fifth of the references."""
    (folders / "pred" / "b.nii.gz").unlink()
    arguments = ["evaluate", "-gt", str(folders / "gt"), "-pred", str(folders / "pred")]
    assert main(arguments) == 2
    assert "have no prediction in" in (error := capsys.readouterr().err)
    assert "(--chill leaves them out): b" in error
    assert main([*arguments, "-o", str(folders / "s.csv"), "--chill"]) == 0
    assert "1 of " in capsys.readouterr().out
    with (folders / "s.csv").open(newline="") as opened:
        assert "b" not in {row["case"] for row in csv.DictReader(opened)}


def dataset_json(folders, labels=None, ending=".nii.gz", **more) -> str:
    content = {"labels": labels or {"background": 0, "one": 1, "two": 2}, "file_ending": ending}
    (folders / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "MRI"}} | more))
    return str(folders / "dataset.json")


def evaluate(folders, *more: str) -> int:
    folder = [str(folders / name) for name in ("gt", "pred")]
    return main(["evaluate", "-gt", folder[0], "-pred", folder[1], "-np", "1", "-o", str(folders / "s.csv"), *more])


def write_values(file, voxels) -> None:
    image = SimpleITK.GetImageFromArray(voxels.astype(np.float32))
    image.SetSpacing(SPACING)
    SimpleITK.WriteImage(image, str(file))


@pytest.mark.parametrize("side", ["gt", "pred"])
@pytest.mark.parametrize("value", [0.99999, 0.5, 1e-7, np.nan, np.inf])
def test_values_that_are_no_labels_are_refused(folders, side, value, capsys):
    voxels = cube(2)
    voxels[voxels == 1] = value
    write_values(folders / side / "b.nii.gz", voxels)
    # ITK reads values that are not finite as 0.
    what = f"the value {value:.6g}" if np.isfinite(value) else "values that are not finite"
    for more in ([], ["-djfile", dataset_json(folders)]):
        assert evaluate(folders, *more) == 2
        assert f"{folders / side / 'b.nii.gz'} holds {what}: labels are whole" in capsys.readouterr().err
    assert not (folders / "s.csv").exists()


def test_whole_values_in_a_file_of_floats_are_labels(folders):
    write_values(folders / "gt" / "b.nii.gz", cube(2))
    assert evaluate(folders) == 0


@pytest.mark.parametrize(("side", "value"), [("pred", 255), ("gt", 255), ("pred", 3), ("gt", 4), ("pred", 128)])
def test_values_that_the_data_set_does_not_know_are_refused(folders, side, value, capsys):
    write(folders / side / "b.nii.gz", cube(2, value))
    assert evaluate(folders, "-djfile", dataset_json(folders)) == 2
    expected = f"{folders / side / 'b.nii.gz'} holds the value {value}, dataset.json knows only 0, 1, 2"
    assert expected in capsys.readouterr().err


def test_the_ignore_label_and_values_inside_regions_are_known(folders):
    write(folders / "gt" / "b.nii.gz", cube(2, 3))
    assert evaluate(folders, "-djfile", dataset_json(folders, {"background": 0, "all": [1, 2], "ignore": 3})) == 0


@pytest.mark.parametrize(("side", "values"), [("pred", (255, 255)), ("gt", (255, 255)), ("pred", (128, 7))])
def test_sides_without_a_common_value_are_refused(folders, side, values, capsys):
    """255 for 1, as many tools write masks."""
    for case, value in zip(("a", "b"), values, strict=True):
        write(folders / side / f"{case}.nii.gz", cube(2, value))
    assert evaluate(folders) == 2
    error = capsys.readouterr().err
    assert "references and predictions have no value in common but 0" in error
    assert f"{max(values)} in {folders / side}" in error


def test_values_of_predictions_alone_are_said_and_counted(folders, capsys):
    write(folders / "pred" / "b.nii.gz", cube(2) + cube(7, 9))
    assert evaluate(folders) == 0
    assert "predictions hold values that no reference has: 9 (b.nii.gz)" in capsys.readouterr().out
    rows = rows_of(folders / "s.csv")
    assert rows["b", "9"]["dice"] == "0"
    assert float(rows["b", "9"]["volume_pred_ml"]) == 0.128


def test_predictions_without_reference_are_said(folders, capsys):
    for case in ("c", "d"):
        write(folders / "pred" / f"{case}.nii.gz", cube(2))
    assert evaluate(folders) == 0
    assert "2 predictions have no reference, left out: c, d" in capsys.readouterr().out
    assert {case for case, _ in rows_of(folders / "s.csv")} == {"a", "b"}


def test_empty_masks_alone_are_said(folders, capsys):
    for file in folders.rglob("*.nii.gz"):
        write(file, cube(2, 0))
    assert evaluate(folders) == 2
    assert "hold nothing but 0" in capsys.readouterr().err


def moved(file, spacing=SPACING, direction=None, origin=(0, 0, 0)) -> None:
    image = SimpleITK.ReadImage(str(file))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": (1.0, 1.0, 3.0)}, "has the spacing (3, 1, 1) mm, its reference"),
        ({"spacing": (1.01, 1.0, 2.0)}, "has the spacing (2, 1, 1.01) mm, its reference"),
        (
            {"direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)},
            "has the direction (-1, 0, 0, 0, -1, 0, 0, 0, 1), its reference",
        ),
        ({"direction": (0, 1, 0, -1, 0, 0, 0, 0, 1)}, "has the direction (0, 1, 0, -1, 0, 0, 0, 0, 1), its reference"),
        ({"origin": (0, 0, 1.2)}, "lies (0, 0, 0.6) voxels (x, y, z) beside its reference"),
        ({"origin": (-40, 0, 0)}, "lies (-40, 0, 0) voxels (x, y, z) beside its reference"),
    ],
)
def test_predictions_elsewhere_than_their_reference_are_refused(folders, change, message, capsys):
    moved(folders / "pred" / "b.nii.gz", **change)
    assert evaluate(folders) == 2
    error = capsys.readouterr().err
    assert f"{folders / 'pred' / 'b.nii.gz'} {message}" in error
    assert str(folders / "gt" / "b.nii.gz") in error


@pytest.mark.parametrize("change", [{"spacing": (1.0005, 1.0, 2.0)}, {"origin": (0.4, -0.4, 0.9)}])
def test_what_formats_round_is_let_through(folders, change):
    moved(folders / "pred" / "b.nii.gz", **change)
    assert evaluate(folders) == 0


def test_pictures_are_measured_in_pixels_and_say_so(folders, capsys):
    """Formats without geometry: nnU-Net's placeholder of the missing axis is no length."""
    for folder, shift in (("gt", 0), ("pred", 2)):
        voxels = np.zeros((20, 20), np.uint8)
        voxels[4 + shift : 14 + shift, 4:14] = 1
        for old in (folders / folder).iterdir():
            old.unlink()
        io.imsave(folders / folder / "a.png", voxels, check_contrast=False)
    for more in ([], ["-djfile", dataset_json(folders, ending=".png")]):
        assert evaluate(folders, *more) == 0
        out = capsys.readouterr().out
        assert ".png files do not say how large a voxel is: distances are in voxels, and there is no volume" in out
        row = next(iter(rows_of(folders / "s.csv").values()))
        assert (float(row["hd95"]), float(row["dice"]), row["volume_gt_ml"]) == (2, 0.8, "nan")


@pytest.mark.parametrize("where", ["both", "pred"])
def test_spacing_of_tiff_is_what_lies_beside_it(folders, where):
    """nnU-Net copies references without their CASE.json; its predictions have theirs."""
    for folder, shift in (("gt", 0), ("pred", 1)):
        for old in (folders / folder).iterdir():
            old.unlink()
        voxels = np.zeros((6, 20, 20), np.uint8)
        voxels[1 + shift : 4 + shift, 4:14, 4:14] = 1
        tifffile.imwrite(folders / folder / "a.tif", voxels)
        if where in ("both", folder):
            (folders / folder / "a.json").write_text(json.dumps({"spacing": [5.0, 0.5, 0.5]}))
    assert evaluate(folders, "-djfile", dataset_json(folders, ending=".tif")) == 0
    row = rows_of(folders / "s.csv")["a", "one"]
    assert float(row["hd95"]) == 5
    assert float(row["volume_gt_ml"]) == pytest.approx(3 * 10 * 10 * 5 * 0.25 / 1000)


def test_sheared_headers_are_read_by_the_reader_that_can(folders):
    """ITK refuses axes that are not at right angles; nnU-Net then plans with nibabel."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 1] = 0.3
    for folder, shift in (("gt", 0), ("pred", 1)):
        for old in (folders / folder).iterdir():
            old.unlink()
        voxels = np.zeros((12, 12, 6), np.uint8)
        voxels[2:6, 2:6, 1 + shift : 4 + shift] = 1
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folders / folder / "a.nii.gz")
    for more in ([], ["-djfile", dataset_json(folders)]):
        assert evaluate(folders, *more) == 0
        row = next(iter(rows_of(folders / "s.csv").values()))
        assert float(row["hd95"]) == 2
    (folders / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO"}))
    assert evaluate(folders, *more, "-pfile", str(folders / "plans.json")) == 2


def test_a_flat_volume_and_its_reference_of_one_slice(folders):
    """Both readers give one slice; the surface is its outline, and its thickness is no distance."""
    for folder, shift in (("gt", 0), ("pred", 3)):
        for old in (folders / folder).iterdir():
            old.unlink()
        voxels = np.zeros((1, 20, 20))
        voxels[0, 4 + shift : 14 + shift, 4:14] = 1
        write(folders / folder / "a.nii.gz", voxels, (1.0, 1.0, 8.0))
    assert evaluate(folders) == 0
    row = rows_of(folders / "s.csv")["a", "1"]
    assert float(row["hd95"]) == 3
    assert float(row["volume_gt_ml"]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "dataset.json is no JSON"),
        ("[]", "dataset.json holds no JSON object but []"),
        ('{"labels": {"background": 0}}', "dataset.json has no key 'file_ending'"),
        ('{"labels": {"background": 0}, "file_ending": ".xyz"}', "nnU-Net has no reader for files that end in '.xyz'"),
    ],
)
def test_faults_of_dataset_json_are_one_sentence(folders, content, message, capsys):
    (folders / "dataset.json").write_text(content)
    assert evaluate(folders, "-djfile", str(folders / "dataset.json")) == 2
    assert message in capsys.readouterr().err


def test_two_formats_in_one_folder_are_told_apart_by_dataset_json(folders, capsys):
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(folders / "gt" / "a.nii.gz")), str(folders / "gt" / "a.nrrd"))
    assert evaluate(folders) == 2
    assert "holds files that end in .nii.gz and in .nrrd: keep one kind in a folder" in capsys.readouterr().err
    assert evaluate(folders, "-djfile", dataset_json(folders)) == 0


@pytest.mark.slow
def test_twenty_large_cases_in_a_minute(tmp_path):
    """20 cases of 512 x 512 x 100 with two labels, on two processes, in under 60 s."""
    import time

    z, y, x = np.mgrid[:100, :512, :512]
    for case in range(20):
        for folder, shift in (("gt", 0), ("pred", 5)):
            voxels = np.zeros((100, 512, 512), np.uint8)
            voxels[((z - 50) / 35) ** 2 + ((y - 256 - shift) / 90) ** 2 + ((x - 200) / 80) ** 2 < 1] = 1
            voxels[((z - 50) / 20) ** 2 + ((y - 256) / 40) ** 2 + ((x - 400 - case) / 40) ** 2 < 1] = 2
            write(tmp_path / folder / f"case{case:02d}.nii.gz", voxels, (0.8, 0.8, 2.5))
    start = time.monotonic()
    rows = evaluate_folders(tmp_path / "gt", tmp_path / "pred", STRUCTURES, num_processes=2)
    assert time.monotonic() - start < 60
    assert len(rows) == 40
