from nnunet_ssl.leaks.sides import TEST, TRAINING, UNLABELED, VALIDATION, Fold


def test_of_a_case_in_two_folders_each_side_has_its_own_scan():
    fold = Fold.of(0, ["a", "b"], ["c"], ["a", "c", "u"], None)
    both = {"imagesTr/a", "imagesUn/a", "imagesTr/b", "imagesTr/c", "imagesUn/u", "imagesTs/a"}
    sides = {scan: fold.sides_of_scan(scan, both) for scan in both}
    assert sides == {
        "imagesTr/a": {TRAINING},
        "imagesUn/a": {UNLABELED},
        "imagesTr/b": {TRAINING},
        "imagesTr/c": {VALIDATION, UNLABELED},  # the only scan of the case
        "imagesUn/u": {UNLABELED},
        "imagesTs/a": {TEST},
    }


def test_training_cases_that_validate_are_on_one_side():
    fold = Fold.of("all", ["a", "b"], ["b", "a"], [], None)
    assert fold.sides_of_scan("imagesTr/a", {"imagesTr/a"}) == {TRAINING}
