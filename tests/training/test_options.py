import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.options import allowed_options, check_ranges, merge_options, parse_options

MEAN_TEACHER = find_trainer("nnUNetTrainerMeanTeacher")
ALLOWED = allowed_options(MEAN_TEACHER, nnUNetTrainer)


def test_allowed_are_the_public_attributes_and_nnunets_settings():
    assert ALLOWED == {
        "num_epochs": int,
        "num_iterations_per_epoch": int,
        "num_val_iterations_per_epoch": int,
        "save_every": int,
        "initial_lr": float,
        "weight_decay": float,
        "oversample_foreground_percent": float,
        "seed": int,
        "mirroring": str,
        "prediction_rounds": int,
        "predicts_mirrored": bool,
        "pseudo_foreground_probability": float,
        "unstable_fraction": float,
        "pretrain_fraction": float,
        "warmup_fraction": float,
        "init_checkpoint": str,
        "checkpoint_minutes": float,
        "worker_seconds": float,
        "replace": bool,
        "max_nonfinite_steps": int,
        "previews": bool,
        "pseudo_dice_of_all_networks": bool,
        "validate_all_networks": bool,
        "ema_decay": float,
        "predict_with": str,
        "consistency_weight": float,
        "rampup_duration": float,
    }


def test_values_are_read_by_type():
    options = parse_options("consistency_weight=5 num_epochs=300 seed=1 init_checkpoint=/a/b=c.pth", ALLOWED)
    assert options == {"consistency_weight": 5.0, "num_epochs": 300, "seed": 1, "init_checkpoint": "/a/b=c.pth"}
    assert parse_options("flag=True", {"flag": bool}) == {"flag": True}
    quoted = """init_checkpoint="C:\\a b\\c.pth" seed=1"""
    assert parse_options(quoted, ALLOWED) == {"init_checkpoint": r"C:\a b\c.pth", "seed": 1}
    assert parse_options("  ", ALLOWED) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "consistancy_weight=5",
            r"unknown option 'consistancy_weight'; allowed are checkpoint_minutes, consistency_weight, ",
        ),
        ("views=weak", r"unknown option 'views'"),
        ("training_losses=1", r"unknown option 'training_losses'"),
        ("num_epochs=2.5", r"num_epochs takes a whole number, got '2.5'"),
        ("num_epochs=0", r"num_epochs is at least 1, got '0'"),
        ("seed=-1", r"seed is at least 0, got '-1'"),
        ("max_nonfinite_steps=0", r"max_nonfinite_steps is at least 1, got '0'"),
        ("ema_decay=high", r"ema_decay takes a number, got 'high'"),
        ("ema_decay=nan", r"ema_decay takes a finite number, got 'nan'"),
        ("ema_decay", r"written as name=value name=value, got 'ema_decay'"),
        ("ema_decay = 0.9", r"written as name=value name=value, got 'ema_decay'"),
        ("seed=1 seed=2", r"'seed' is given twice"),
        ('init_checkpoint="a b', r"quotation mark that is not closed"),
    ],
)
def test_bad_options_are_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse_options(text, ALLOWED)


def test_value_with_a_space_is_quoted():
    assert parse_options("init_checkpoint='/my data/a.pth' seed=1", ALLOWED)["init_checkpoint"] == "/my data/a.pth"


def test_attribute_without_a_value_takes_its_type_from_the_annotation():
    class Method(MEAN_TEACHER):
        confidence_threshold: float | None = None
        classes: list | None = None

    with pytest.raises(TypeError, match="Method.classes: list | None is none of"):
        allowed_options(Method, nnUNetTrainer)
    del Method.classes
    assert allowed_options(Method, nnUNetTrainer)["confidence_threshold"] is float


def test_what_there_may_be_none_of_may_be_0():
    allowed = {"seed": int, "blocks_per_axis": int, "scales": int}
    assert parse_options("seed=0 blocks_per_axis=0", allowed) == {"seed": 0, "blocks_per_axis": 0}
    with pytest.raises(ValueError, match="blocks_per_axis is at least 0, got '-1'"):
        parse_options("blocks_per_axis=-1", allowed)
    with pytest.raises(ValueError, match="scales is at least 1, got '0'"):
        parse_options("scales=0", allowed)


def test_an_attribute_that_is_none_in_a_class_without_annotations_is_no_option():
    class Method(MEAN_TEACHER):
        kept = None
        scale = 2.0

    allowed = allowed_options(Method, nnUNetTrainer)
    assert allowed["scale"] is float
    assert "kept" not in allowed


def test_bad_flag_is_refused():
    with pytest.raises(ValueError, match="flag takes true or false, got 'yes'"):
        parse_options("flag=yes", {"flag": bool})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rampup_duration": 1.5}, r"rampup_duration is a fraction in \[0, 1\], got 1.5"),
        ({"confidence_threshold": 95.0}, r"confidence_threshold is a fraction in \[0, 1\], got 95.0"),
        ({"feature_dropout": -0.1}, r"feature_dropout is a fraction in \[0, 1\], got -0.1"),
        ({"largest_box": 40.0}, r"largest_box is a fraction in \[0, 1\], got 40.0"),
        ({"box_side": 0.0}, r"box_side is a fraction in \(0, 1\], got 0.0"),
        ({"smallest_box": 0.5, "largest_box": 0.4}, "smallest_box=0.5 is more than largest_box=0.4"),
        ({"mixing_concentration": 0.0}, "mixing_concentration is more than 0, got 0.0"),
        ({"entropy_weight": -1.0}, "entropy_weight is 0 or more, got -1.0"),
        ({"oversample_foreground_percent": 33.0}, r"oversample_foreground_percent is a fraction in \[0, 1\], got 33.0"),
    ],
)
def test_values_outside_of_their_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        check_ranges(options)


def test_limits_and_missing_values_are_in_range():
    check_ranges({"rampup_duration": 0.0, "box_side": 1.0, "seed": None, "confidence_threshold": None, "scales": 4})


DEFAULTS = {"num_epochs": 1000, "ema_decay": 0.99}


def test_unset_variable_means_the_stored_options():
    assert merge_options({"ema_decay": 0.9}, None, DEFAULTS) == {"ema_decay": 0.9}


def test_only_a_larger_number_of_epochs_may_differ():
    assert merge_options({"num_epochs": 10}, {"num_epochs": 20}, DEFAULTS) == {"num_epochs": 20}
    assert merge_options({}, {"num_epochs": 2000}, DEFAULTS) == {"num_epochs": 2000}
    for stored, given, message in [
        ({"num_epochs": 10}, {"num_epochs": 5}, "started with num_epochs=10, now .* num_epochs=5"),
        ({"num_epochs": 10}, {"num_epochs": 10, "ema_decay": 0.9}, "started with ema_decay=0.99, now .* ema_decay=0.9"),
        ({"ema_decay": 0.9}, {"ema_decay": 0.99}, "started with ema_decay=0.9, now .* says ema_decay=0.99"),
        ({}, {"num_epochs": 10}, "started with num_epochs=1000, now .* num_epochs=10"),
        ({}, {"seed": 1}, "started without seed, now nnUNet_ssl_options says seed=1; .*: leave seed out"),
    ]:
        with pytest.raises(ValueError, match=message):
            merge_options(stored, given, DEFAULTS)


def test_options_that_are_not_given_again_keep_the_value_of_the_run():
    stored = {"num_epochs": 2, "ema_decay": 0.9, "seed": 1}
    assert merge_options(stored, {"num_epochs": 3}, DEFAULTS) == {"num_epochs": 3, "ema_decay": 0.9, "seed": 1}
    assert merge_options(stored, {"seed": 1}, DEFAULTS) == stored


def test_option_set_to_its_default_is_no_difference():
    assert merge_options({}, {"ema_decay": 0.99}, DEFAULTS) == {"ema_decay": 0.99}


@pytest.mark.parametrize(
    ("name", "value", "text", "expected"),
    [
        ("pseudo_label_weight", 1, "0.5", 0.5),
        ("rampup_duration", 1, "0.25", 0.25),
        ("confidence_threshold", 0, "0.9", 0.9),
        ("mixing_concentration", 2, "1.5", 1.5),
    ],
)
def test_a_whole_default_of_a_fraction_or_weight_takes_other_numbers(name, value, text, expected):
    method = type("Method", (MEAN_TEACHER,), {name: value})
    assert parse_options(f"{name}={text}", allowed_options(method, nnUNetTrainer)) == {name: expected}


def test_a_count_stays_a_whole_number():
    method = type("Method", (MEAN_TEACHER,), {"num_passes": 4, "previews": True})
    allowed = allowed_options(method, nnUNetTrainer)
    assert (allowed["num_passes"], allowed["previews"]) == (int, bool)
    with pytest.raises(ValueError, match="num_passes takes a whole number"):
        parse_options("num_passes=0.5", allowed)
