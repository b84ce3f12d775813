"""The README's commands, as a user types them, on a small synthetic data set and on real data where it is at hand."""

import json
import os
import pkgutil
import re
import shutil
import subprocess
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

import nnunet_ssl.trainers
from nnunet_ssl.discovery.variants import find_trainer
from tests.conftest import SHARED_DATA
from tests.warm_processes import start_command

TRAINER = "nnUNetTrainerMeanTeacher"
SHORT = "num_epochs=2 num_iterations_per_epoch=2 num_val_iterations_per_epoch=1 seed=1"


@dataclass
class Workplace:
    """nnU-Net's three folders and an empty one to stand in; commands write their output to files."""

    root: Path
    dataset: str

    def run(self, command: str, expect: int = 0, **variables: str) -> str:
        process = self.start(command, **variables)
        code = process.wait(timeout=1200)
        output = Path(process.args[-1]).read_text()
        assert code == expect, output[-3000:]
        return output

    def start(self, command: str, **variables: str) -> subprocess.Popen:
        # The log's name is the last argument of a shell that hands the command on.
        shell = ["bash", "-c", f"exec {command} > $0 2>&1", str(self.new_log())]
        return subprocess.Popen(shell, env=self.environment(variables), cwd=self.root / "empty")

    def run_warm(self, command: str, expect: int = 0, **variables: str) -> str:
        """Run a command of which another test runs one of its kind as a user types it, with the imports done."""
        log = self.new_log()
        process = start_command(command.split(), log, self.root / "empty", self.environment(variables))
        process.join(timeout=1200)
        process.kill()
        output = log.read_text()
        assert process.exitcode == expect, output[-3000:]
        return output

    def new_log(self) -> Path:
        return self.root / f"log{len(list(self.root.glob('log*')))}.txt"

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        environment = os.environ | {
            **{f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")},
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
        }
        environment.pop("nnUNet_ssl_options", None)
        return environment | variables

    def results(self, configuration: str, fold: int = 0, plans: str = "nnUNetPlans") -> Path:
        return self.root / "results" / self.dataset / f"{TRAINER}__{plans}__{configuration}" / f"fold_{fold}"


def make_workplace(root: Path, dataset: str) -> Workplace:
    for name in ("raw", "preprocessed", "results", "empty"):
        (root / name).mkdir()
    return Workplace(root, dataset)


def write_synthetic_dataset(folder: Path, labeled: int = 6) -> None:
    """Bright balls in noise, some labeled, 4 unlabeled, 1 to predict."""
    rng = np.random.default_rng(0)
    for name, number in (("Tr", labeled), ("Un", 4), ("Ts", 1)):
        for i in range(number):
            grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"))
            center = rng.uniform(9, 15, 3)[:, None, None, None]
            ball = ((grid - center) ** 2).sum(0) < rng.uniform(25, 50)
            image = SimpleITK.GetImageFromArray((ball * 3 + rng.normal(10, 1, ball.shape)).astype(np.float32))
            write(image, folder / f"images{name}" / f"{name.lower()}{i}_0000.nii.gz")
            if name == "Tr":
                write(SimpleITK.GetImageFromArray(ball.astype(np.uint8)), folder / "labelsTr" / f"tr{i}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "ball": 1},
        "numTraining": labeled,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def write(image: SimpleITK.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(file))


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Workplace:
    """Return a synthetic data set after nnUNetv2_plan_and_preprocess."""
    place = make_workplace(tmp_path_factory.mktemp("synthetic"), "Dataset998_Balls")
    write_synthetic_dataset(place.root / "raw" / place.dataset)
    place.run("nnUNetv2_plan_and_preprocess -d 998 -c 2d 3d_fullres --verify_dataset_integrity -np 1 -npfp 1")
    return place


@pytest.fixture(scope="module")
def trained(planned) -> Workplace:
    planned.run(f"nnUNetv2_train 998 3d_fullres 0 -tr {TRAINER} -device cpu --npz", nnUNet_ssl_options=SHORT)
    return planned


def weights(file: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(file, weights_only=False)
    states = checkpoint["nnunet_ssl"]["networks"] | checkpoint["nnunet_ssl"]["teachers"]
    return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}


def test_training_preprocesses_predicts_and_scores(trained):
    folder = trained.results("3d_fullres")
    unlabeled = trained.root / "preprocessed" / trained.dataset / "nnUNetPlans_3d_fullres_unlabeled"
    assert sorted(file.name for file in unlabeled.glob("un?.b2nd")) == [f"un{i}.b2nd" for i in range(4)]
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "validation/summary.json"):
        assert (folder / name).exists(), name
    assert list((folder / "validation").glob("*.npz"))
    log = next(folder.glob("training_log*.txt")).read_text()
    assert "Unlabeled cases: 4" in log
    assert "loss terms: supervised" in log
    assert f"Options (nnUNet_ssl_options): {SHORT}" in log


@pytest.mark.parametrize("flag", ["--val", "--val --val_best", "--c"])
def test_flags_of_nnunet(trained, flag):
    trained.run_warm(f"nnUNetv2_train 998 3d_fullres 0 -tr {TRAINER} -device cpu {flag}")


def test_prediction_is_the_teachers(trained):
    command = f"nnUNetv2_predict -d 998 -c 3d_fullres -f 0 -tr {TRAINER} -device cpu -npp 1 -nps 1"
    images = trained.root / "raw" / trained.dataset / "imagesTs"
    trained.run(f"{command} -i {images} -o {trained.root / 'predicted'}")
    assert (trained.root / "predicted" / "ts0.nii.gz").exists()
    checkpoint = torch.load(trained.results("3d_fullres") / "checkpoint_final.pth", weights_only=False)
    for key, value in checkpoint["nnunet_ssl"]["teachers"]["teacher"].items():
        assert torch.equal(value, checkpoint["network_weights"][key])


@pytest.mark.slow
def test_nnunet_finds_the_best_configuration(trained):
    """And an ensemble of both; by the validation of each."""
    trained.run_warm(f"nnUNetv2_train 998 2d 0 -tr {TRAINER} -device cpu --npz", nnUNet_ssl_options=SHORT)
    said = trained.run(f"nnUNetv2_find_best_configuration 998 -c 2d 3d_fullres -tr {TRAINER} -f 0 -np 1")
    assert all(f"{TRAINER}__nnUNetPlans__{configuration}" in said for configuration in ("2d", "3d_fullres"))
    assert "*Best*:" in said
    assert f"nnUNetv2_predict -d {trained.dataset}" in said


def test_kill_in_mid_epoch_and_going_on_equals_an_undisturbed_run(planned):
    """kill -9 while the third of four epochs runs; `--c` ends with the same weights, bit for bit."""
    options = "num_epochs=4 num_iterations_per_epoch=8 num_val_iterations_per_epoch=1 seed=3 save_every=1"
    variables = {"nnUNet_ssl_options": options, "nnUNet_n_proc_DA": "0"}
    command = f"nnUNetv2_train 998 2d 1 -tr {TRAINER} -device cpu"
    folder = planned.results("2d", fold=1)
    planned.run_warm(command, **variables)
    undisturbed = weights(folder / "checkpoint_final.pth")
    shutil.rmtree(folder)

    process = planned.start(command, **variables)  # and not forked beside the others: no order of a set is theirs
    while "Epoch 2" not in "".join(file.read_text() for file in folder.glob("training_log*.txt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (folder / "checkpoint_final.pth").exists()
    planned.run_warm(f"{command} --c", nnUNet_n_proc_DA="0")  # without the variable: the options are the checkpoint's
    again = weights(folder / "checkpoint_final.pth")
    assert undisturbed.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in undisturbed.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("learning_rate=1", "ValueError: nnUNet_ssl_options: unknown option 'learning_rate'; allowed are"),
        ("num_epochs=many", "ValueError: nnUNet_ssl_options: num_epochs takes a whole number, got 'many'"),
    ],
)
def test_bad_options_end_in_one_sentence(planned, options, message):
    output = planned.run_warm(f"nnUNetv2_train 998 2d 2 -tr {TRAINER} -device cpu", 1, nnUNet_ssl_options=options)
    assert message in output.strip().splitlines()[-1]


def test_labeled_image_among_the_unlabeled_is_found_by_its_voxels(trained):
    """Renamed and compressed anew: no byte of the file is the same."""
    raw = trained.root / "raw" / trained.dataset
    log = next(trained.results("3d_fullres").glob("training_log*.txt")).read_text()
    case = re.search(r"predicting (tr\d)", log)[1]
    image = SimpleITK.ReadImage(str(raw / "imagesTr" / f"{case}_0000.nii.gz"))
    smuggled = raw / "imagesUn" / "other_0000.nii.gz"
    SimpleITK.WriteImage(image, str(smuggled), useCompression=True, compressionLevel=1)
    try:
        train = f"nnUNetv2_train 998 3d_fullres 1 -tr {TRAINER} -device cpu"
        output = trained.run_warm(train, 1, nnUNet_ssl_options=SHORT)
    finally:
        smuggled.unlink()
    assert (
        f"same image as a training or validation case of this fold: other = {case}" in output.strip().splitlines()[-1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("planner", ["", "-pl nnUNetPlannerResEncM"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_every_configuration_and_plans(planned, planner, configuration):
    plans = "nnUNetResEncUNetMPlans" if planner else "nnUNetPlans"
    if planner:
        planned.run(f"nnUNetv2_plan_and_preprocess -d 998 -c {configuration} {planner} -np 1 -npfp 1")
    train = f"nnUNetv2_train 998 {configuration} 3 -tr {TRAINER} -p {plans} -device cpu"
    planned.run(train, nnUNet_ssl_options=SHORT)
    final = planned.results(configuration, 3, plans) / "checkpoint_final.pth"
    planned.run(train.replace(" 3 ", " 4 ") + f" -pretrained_weights {final}", nnUNet_ssl_options=SHORT)
    images = planned.root / "raw" / planned.dataset / "imagesTs"
    predict = f"nnUNetv2_predict -d 998 -c {configuration} -f 3 -tr {TRAINER} -p {plans} -device cpu -npp 1 -nps 1"
    planned.run(f"{predict} -i {images} -o {planned.root / f'{plans}_{configuration}'}")
    assert (planned.root / f"{plans}_{configuration}" / "ts0.nii.gz").exists()


@pytest.fixture(scope="module")
def plain_python(tmp_path_factory) -> Path:
    """Return an interpreter that has nnU-Net and has never heard of this package."""
    folder = tmp_path_factory.mktemp("plain")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(subprocess.check_output([python, "-c", code], text=True).strip())
    # The dependencies are those of the running environment; an editable install there is not seen this way.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    if subprocess.run([python, "-c", "import nnunet_ssl"], capture_output=True, cwd=folder).returncode == 0:
        pytest.skip("this package is installed here in a way that every interpreter sees")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_exported_model_predicts_the_same_without_this_package(planned, plain_python, configuration):
    planned.run(f"nnUNetv2_train 998 {configuration} 2 -tr {TRAINER} -device cpu", nnUNet_ssl_options=SHORT)
    images, out = planned.root / "raw" / planned.dataset / "imagesTs", planned.root / f"exported_{configuration}"
    predict = f"nnUNetv2_predict -d 998 -c {configuration} -f 2 -tr {TRAINER} -device cpu -npp 1 -nps 1"
    planned.run(f"{predict} -i {images} -o {out}_ours")
    planned.run(f"nnunet_ssl export -d 998 -c {configuration} -tr {TRAINER} -f 2 -o {out}.zip")
    shutil.unpack_archive(f"{out}.zip", out)
    model = out / planned.dataset / f"nnUNetTrainer__nnUNetPlans_MeanTeacher__{configuration}"
    script = planned.root / "predict_plainly.py"
    script.write_text(
        "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder\n"
        "if __name__ == '__main__':\n    predict_entry_point_modelfolder()\n"
    )
    arguments = f"-m {model} -f 2 -device cpu -npp 1 -nps 1 -i {images} -o {out}_plain"
    planned.run(f"{plain_python} {script} {arguments}", nnUNet_extTrainer="")
    ours, plain = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(f"{out}_{n}/ts0.nii.gz")) for n in ("ours", "plain"))
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real hippocampus data is not here")
def test_real_hippocampus(tmp_path):
    """120 labeled and 80 unlabeled MRI of MSD Task04, by the README's commands."""
    place = make_workplace(tmp_path, "Dataset004_Hippocampus")
    shutil.copytree(SHARED_DATA / place.dataset, place.root / "raw" / place.dataset)
    place.run_warm("nnUNetv2_plan_and_preprocess -d 4 -c 2d 3d_fullres --verify_dataset_integrity -np 2 -npfp 2")
    place.run("nnunet_ssl preprocess -d 4 -c 2d 3d_fullres -np 2")
    cases = sorted(file.name.split(".")[0] for file in (place.root / "raw" / place.dataset / "labelsTr").iterdir())
    splits = [{"train": cases[3:], "val": cases[:3]}]  # nnU-Net's 24 validation cases take minutes on a CPU
    (place.root / "preprocessed" / place.dataset / "splits_final.json").write_text(json.dumps(splits))
    short = "num_epochs=1 num_iterations_per_epoch=2 num_val_iterations_per_epoch=1 seed=1"
    place.run_warm(f"nnUNetv2_train 4 3d_fullres 0 -tr {TRAINER} -device cpu", nnUNet_ssl_options=short)
    log = next(place.results("3d_fullres").glob("training_log*.txt")).read_text()
    assert "Unlabeled cases: 80" in log
    assert "This split has 117 training and 3 validation cases." in log
    assert "Mean Validation Dice" in log


@pytest.mark.slow
def test_benchmarks(planned):
    """Both print a table; interrupted or not, label_efficiency does no run twice."""
    benchmarks = Path(__file__).parent.parent / "benchmarks"
    small = "--features 4 8 8 8 --device cpu"
    table = planned.run(f"python {benchmarks}/step_time.py --trainer ALL --steps 2 --batch-size 1 {small}")
    assert re.search(rf"\| {TRAINER} \| [\d.]+ \| [\d.]+ \| 2.333 \|", table)
    peaks = re.findall(r"^\| nnUNet.* \| ([\d.]+) \| [\d.]+ \|$", table, re.MULTILINE)
    names = [module.name for module in pkgutil.iter_modules(nnunet_ssl.trainers.__path__)]
    assert len(peaks) == 1 + sum(3 in find_trainer(name).DIMENSIONS for name in names)
    assert len(set(peaks)) > 1  # each trainer's own, not that of the process which started them
    command = f"python {benchmarks}/label_efficiency.py --dataset 998 --labeled 2 --trainers {TRAINER} --steps 20"
    small = f"--features 4 8 8 --batch-size 2 --device cpu --results {planned.root}/json"
    table = planned.run(f"{command} --configuration 2d {small}")
    assert re.search(rf"\| `{TRAINER}` \| 0.\d{{4}} \| [+-]0.\d{{4}}.* \| 2.33 \|", table), table
    assert re.search(r"\| `nnUNetTrainer`, all \d+ labeled \| 0.\d{4}", table), table
    assert "3 runs, 3 done before" in planned.run(f"{command} --configuration 2d {small}")
    result = next((planned.root / "json").glob(f"*/{TRAINER}__default__seed1.json")).read_text()
    assert str(planned.root) not in result
    splits = planned.root / "preprocessed" / planned.dataset / "splits_final.json"
    if not splits.exists():  # no other test has trained before
        cases = sorted(file.name.split(".")[0] for file in (splits.parent / "gt_segmentations").iterdir())
        splits.write_text(json.dumps([{"train": cases[2:], "val": cases[:2]}]))
    own = command.replace("--labeled 2", "--own-split") + f" --experiment own --configuration 2d {small}"
    assert re.search(rf"\| `{TRAINER}` \| 0.\d{{4}}", table := planned.run(own)), table
    result = json.loads((planned.root / "json" / "own" / f"{TRAINER}__default__seed1.json").read_text())
    assert result["split"]["labeled"] == len(json.loads(splits.read_text())[0]["train"])
