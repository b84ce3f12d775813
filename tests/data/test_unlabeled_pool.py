import json
import shutil

import pytest

from nnunet_ssl.data.split_file import unlabeled_cases_of_fold
from nnunet_ssl.data.stamps import folder_of
from nnunet_ssl.data.unlabeled_pool import UnlabeledPool, collect_pool, twins_warning
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing
from tests.data.test_identical_images import reading
from tests.data.test_unlabeled_preprocessing import write_image

LABELED = {"labeled0", "labeled1", "labeled2"}


def preprocessing_of(dataset) -> UnlabeledPreprocessing:
    identifier = dataset.labeled_folder.name
    return UnlabeledPreprocessing(
        dataset.case.plans(),
        dataset.case.configuration,
        dataset.case.dataset_json(),
        dataset.images_un,
        folder_of(dataset.folder, identifier),
    )


def collect(dataset, named=None, labeled=LABELED) -> UnlabeledPool:
    job = preprocessing_of(dataset)
    train, validation = sorted(labeled)[:-1], sorted(labeled)[-1:]
    return collect_pool(job, dataset.labeled_folder, train, validation, named, lambda cases: job.run(1, cases) and None)


def test_all_images_are_the_pool_and_are_preprocessed_on_first_use(tiny_dataset):
    dataset = tiny_dataset()
    for i in range(2):
        write_image(dataset.images_un / f"scan{i}_0000.nii.gz", seed=i)
    pool = collect(dataset)
    assert pool.folders == {"scan0": dataset.unlabeled_folder, "scan1": dataset.unlabeled_folder}


def test_named_cases_are_the_pool_wherever_they_lie(tiny_dataset):
    dataset = tiny_dataset()
    write_image(dataset.images_un / "scan0_0000.nii.gz")
    write_image(dataset.images_un / "scan1_0000.nii.gz", seed=1)
    pool = collect(dataset, named=["scan1", "labeled3"])
    assert pool.folders == {"scan1": dataset.unlabeled_folder, "labeled3": dataset.labeled_folder}


def test_without_raw_images_what_is_preprocessed_is_trusted(tiny_dataset):
    dataset = tiny_dataset()
    shutil.rmtree(dataset.root / "raw")
    assert sorted(collect(dataset).folders) == ["unlabeled0", "unlabeled1", "unlabeled2"]


def test_folder_that_is_only_read_is_no_obstacle(tiny_dataset, monkeypatch):
    def refuse(content, file):
        raise PermissionError(file)

    monkeypatch.setattr("nnunet_ssl.data.preprocessed_images.write_json_atomically", refuse)
    assert len(collect(tiny_dataset()).folders) == 3


def test_removed_images_are_not_trained_on_any_more(tiny_dataset):
    """Preprocessed cases are trusted where the raw data set is not; here it is, and its imagesUn is gone."""
    dataset = tiny_dataset()
    dataset.images_un.parent.mkdir()
    with pytest.raises(ValueError, match="there are no unlabeled images"):
        collect(dataset)


def test_a_misspelled_folder_of_images_is_named(tiny_dataset):
    dataset = tiny_dataset()
    (dataset.images_un.parent / "imagesUnlabeled").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"there is no folder imagesUn, is it imagesUnlabeled\?"):
        collect(dataset)


def test_empty_pool_says_where_images_go(tiny_dataset):
    dataset = tiny_dataset()
    dataset.images_un.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no unlabeled images: put them into .*imagesUn as CASE_0000.nii.gz"):
        collect(dataset)
    with pytest.raises(ValueError, match=r"lists no case under `unlabeled`"):
        collect(dataset, named=[])


def test_case_that_is_nowhere_is_named(tiny_dataset):
    with pytest.raises(ValueError, match=r"neither in .* nor preprocessed in .*: ghost"):
        collect(tiny_dataset(), named=["ghost"])


def test_name_shared_with_a_labeled_case_is_refused(tiny_dataset):
    dataset = tiny_dataset()
    write_image(dataset.images_un / "labeled1_0000.nii.gz")
    with pytest.raises(ValueError, match=r"labeled1: unlabeled and at the same time a training or validation case"):
        collect(dataset)
    with pytest.raises(ValueError, match="labeled2: unlabeled and at the same time"):
        collect(tiny_dataset(), named=["labeled2"])


@pytest.mark.parametrize("hidden", [False, True])
def test_same_image_under_another_name_is_refused(tiny_dataset, hidden):
    dataset = tiny_dataset()
    folder = dataset.labeled_folder if hidden else dataset.unlabeled_folder
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        shutil.copy(dataset.labeled_folder / f"labeled2{ending}", folder / f"copy{ending}")
    with pytest.raises(ValueError, match=r"same image as a training or validation case of this fold: copy = labeled2"):
        collect(dataset, named=["copy"])


def test_raw_copy_of_a_labeled_image_is_refused(tiny_dataset):
    """Recompressed and renamed: the bytes differ, the voxels do not."""
    dataset = tiny_dataset()
    write_image(dataset.images_un / "scan0_0000.nii.gz")
    job = preprocessing_of(dataset)
    job.run(1)
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        shutil.copy(job.preprocessed / f"scan0{ending}", dataset.labeled_folder / f"labeled0{ending}")
    with pytest.raises(ValueError, match="scan0 = labeled0"):
        collect(dataset)


def test_wrong_channel_count_is_refused(tiny_dataset):
    dataset = tiny_dataset()
    write_image(dataset.images_un / "scan0_0000.nii.gz")
    write_image(dataset.images_un / "scan0_0001.nii.gz")
    with pytest.raises(ValueError, match=r"do not fit the data set: scan0: it has 2 channel\(s\), the data set has 1"):
        collect(dataset)


def test_damaged_image_is_left_out(tiny_dataset):
    dataset = tiny_dataset()
    write_image(dataset.images_un / "scan0_0000.nii.gz")
    write_image(dataset.images_un / "scan1_0000.nii.gz", seed=1)
    (dataset.images_un / "scan1_0000.nii.gz").write_bytes(b"no image")
    pool = collect(dataset)
    assert list(pool.folders) == ["scan0"]
    assert list(pool.left_out) == ["scan1"]
    (dataset.images_un / "scan0_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the 2 unlabeled images can be used; scan0: "):
        collect(dataset)


def test_unlabeled_key_of_a_fold(tiny_dataset):
    dataset = tiny_dataset()
    dataset.write_splits([{"train": [], "val": []}, {"train": [], "val": [], "unlabeled": ["a"]}])
    file = dataset.folder / "splits_final.json"
    assert unlabeled_cases_of_fold(file, 0) is None
    assert unlabeled_cases_of_fold(file, 1) == ["a"]
    assert unlabeled_cases_of_fold(file, "all") is None


def copy_case(dataset, source: str, target: str) -> None:
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        shutil.copy(dataset.labeled_folder / f"{source}{ending}", dataset.labeled_folder / f"{target}{ending}")


@pytest.mark.parametrize("twin", ["labeled0", "labeled2"])
def test_unlabeled_twins_of_training_and_validation_cases_are_refused(tiny_dataset, twin):
    dataset = tiny_dataset()
    copy_case(dataset, twin, "labeled3")
    with pytest.raises(ValueError, match=f"same image as a training or validation case .*: labeled3 = {twin}"):
        collect(dataset, named=["labeled3"])


@pytest.mark.parametrize("folder", ["imagesUn", "imagesTr"])
def test_unlabeled_twins_of_test_cases_are_refused(tiny_dataset, folder):
    """The test set is not preprocessed: raw images are compared."""
    dataset = tiny_dataset()
    raw = dataset.images_un.parent
    raw.mkdir()
    (raw / "dataset.json").write_text(json.dumps(dataset.case.dataset_json()))
    case = "scan0" if folder == "imagesUn" else "labeled3"
    write_image(dataset.images_un / "other_0000.nii.gz", seed=1)
    write_image(raw / folder / f"{case}_0000.nii.gz", seed=2)
    write_image(raw / "imagesTs" / "test7_0000.nii.gz", seed=3)
    assert case in collect(dataset, named=[case, "other"]).folders
    shutil.copy(raw / folder / f"{case}_0000.nii.gz", raw / "imagesTs" / "test7_0000.nii.gz")
    with pytest.raises(ValueError, match=rf"same image as a test case: {case} = test7 \(imagesTs\)\. Take"):
        collect(dataset, named=[case, "other"])
    assert list(collect(dataset, named=["other"]).folders) == ["other"]


def test_what_was_read_to_be_preprocessed_is_not_read_again_to_be_compared_with_test_cases(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()
    raw = dataset.images_un.parent
    raw.mkdir()
    (raw / "dataset.json").write_text(json.dumps(dataset.case.dataset_json()))
    for seed, case in enumerate(("scan0", "scan1")):
        write_image(dataset.images_un / f"{case}_0000.nii.gz", seed=seed)
    write_image(raw / "imagesTs" / "test7_0000.nii.gz", seed=1)
    preprocessing_of(dataset).run(1)
    read = reading(monkeypatch)
    with pytest.raises(ValueError, match=r"same image as a test case: scan1 = test7 \(imagesTs\)"):
        collect(dataset)
    assert read == ["test7_0000.nii.gz"]


@pytest.mark.parametrize("training", ["labeled0", "labeled1"])
def test_training_twins_of_validation_cases_are_told(tiny_dataset, training):
    dataset = tiny_dataset()
    assert collect(dataset).twins == []
    copy_case(dataset, training, "labeled2")
    assert collect(dataset).twins == [f"{training} = labeled2"]
    said = twins_warning([f"{training} = labeled2"], "Dataset999_Tiny")
    assert "nnunet_ssl split Dataset999_Tiny --labeled 100% --overwrite" in said


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["site_0001", "site_0007"], "site: it has 2 channel(s), the data set has 1 (MRI), numbered 0000 and so on"),
        (["scan_0003"], "scan: it has 1 channel(s), the data set has 1 (MRI), numbered 0000 and so on, not 0003"),
        (["p_0000", "p_0001"], "if p_0001.nii.gz is a case of its own, name it p_0001_0000.nii.gz"),
    ],
)
def test_patients_that_are_named_like_channels_are_refused(tiny_dataset, names, says):
    dataset = tiny_dataset()
    write_image(dataset.images_un / "good_0000.nii.gz")
    for seed, name in enumerate(names, start=1):
        write_image(dataset.images_un / f"{name}.nii.gz", seed=seed)
    with pytest.raises(ValueError, match="unlabeled images do not fit the data set") as raised:
        collect(dataset)
    assert says in str(raised.value)
