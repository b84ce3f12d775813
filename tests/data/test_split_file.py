import json

import pytest

from nnunet_ssl.data.split_file import NO_ESTIMATE, read_splits, unlabeled_cases_of_fold, write_small_split

FOLD = {"train": ["a"], "val": ["b"], "unlabeled": ["c"]}


def write(folder, content):
    file = folder / "splits_final.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize(
    "key", ["unlabelled", "Unlabeled", "un_labeled", "unlabeled_cases", "umlabeled", "unannotated"]
)
def test_keys_near_unlabeled_are_refused(tmp_path, key):
    file = write(tmp_path, [FOLD, {"train": ["a"], "val": ["b"], key: ["c"]}])
    with pytest.raises(ValueError, match=f"fold 1 of .* has the key '{key}', which nobody reads: write 'unlabeled'"):
        read_splits(file)


@pytest.mark.parametrize("key", ["test", "comment", "seed", "labeled", "enabled"])
def test_other_keys_are_left_alone(tmp_path, key):
    assert unlabeled_cases_of_fold(write(tmp_path, [FOLD | {key: 3}]), 0) == ["c"]


@pytest.mark.parametrize("value", ["c", {"c": 1}, None, 3, [3], [["c"]]])
@pytest.mark.parametrize("key", ["train", "val", "unlabeled"])
def test_values_that_are_no_lists_of_names_are_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match=f"fold 0 of .*splits_final.json: '{key}'( is no list|, entry 0 is no text)"):
        read_splits(write(tmp_path, [FOLD | {key: value}]))


@pytest.mark.parametrize("key", ["train", "val", "unlabeled"])
def test_a_case_that_is_a_path_or_stands_there_twice_is_refused(tmp_path, key):
    for cases, message in (
        (["a", "../b"], "'../b' is a path, which may lead out of its folder"),
        (["/etc/passwd"], "'/etc/passwd' is a path"),
        (["a", "b", "a"], "names a twice"),
    ):
        with pytest.raises(ValueError, match=f"fold 1 of .*splits_final.json: '{key}'(, entry .: | ){message}"):
            read_splits(write(tmp_path, [FOLD, FOLD | {key: cases}]))


def test_json_that_is_nested_without_end_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="is no JSON .it is nested too deeply"):
        read_splits(write(tmp_path, "[" * 100_000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is no JSON"),
        ("{}", "is no list of folds"),
        ("[3]", "is no list of folds"),
        ([{"train": ["a"]}], "fold 0 of .* has no key 'val'"),
    ],
)
def test_what_is_no_splits_file_is_one_sentence(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_splits(write(tmp_path, content))


def test_fold_all_and_a_missing_file_name_no_cases(tmp_path):
    assert unlabeled_cases_of_fold(tmp_path / "none.json", 0) is None
    assert unlabeled_cases_of_fold(write(tmp_path, [FOLD]), "all") is None
    assert unlabeled_cases_of_fold(write(tmp_path, [{"train": [], "val": []}]), 0) is None


@pytest.mark.parametrize("fold", [1, 7, -1])
def test_a_fold_that_there_is_not_is_refused(tmp_path, fold):
    with pytest.raises(ValueError, match=rf"there is no fold {fold}: .* has 1 fold\(s\)"):
        unlabeled_cases_of_fold(write(tmp_path, [FOLD]), fold)


@pytest.mark.parametrize(
    ("cases", "pattern", "validation"),
    [
        (["b", "a"], None, [["a"], ["b"]]),
        (["a", "b", "c"], None, [["a"], ["b"], ["c"]]),
        (["a", "b", "c", "d"], None, [["a"], ["b"], ["c"], ["d"]]),
        (["p1_a", "p1_b", "p2_a"], r"^(p\d)", [["p1_a", "p1_b"], ["p2_a"]]),
        (
            [f"p{i % 4}_{i}" for i in range(40)],
            r"^(p\d)",
            [[f"p{i}_{j}" for j in range(40) if j % 4 == i] for i in range(4)],
        ),
    ],
)
def test_few_patients_leave_one_out(tmp_path, cases, pattern, validation):
    file = tmp_path / "splits_final.json"
    assert "one validates in each" in write_small_split(file, cases, pattern)
    splits = read_splits(file)
    assert [sorted(split["val"]) for split in splits] == [sorted(part) for part in validation]
    for split in splits:
        assert sorted([*split["train"], *split["val"]]) == sorted(cases)


@pytest.mark.parametrize(("cases", "pattern"), [(["only"], None), (["p1_a", "p1_b"], r"^(p\d)")])
def test_one_patient_validates_itself_and_that_is_said(tmp_path, cases, pattern):
    file = tmp_path / "splits_final.json"
    assert NO_ESTIMATE in write_small_split(file, cases, pattern)
    assert read_splits(file) == [{"train": cases, "val": cases}]


def test_nothing_is_written_where_nnunets_folds_fit_or_a_split_stands(tmp_path):
    file = tmp_path / "splits_final.json"
    assert write_small_split(file, list("abcde"), None) == ""
    assert write_small_split(file, [], None) == ""
    assert not file.exists()
    write(tmp_path, [FOLD])
    assert write_small_split(file, ["a"], None) == ""
    assert read_splits(file) == [FOLD]
