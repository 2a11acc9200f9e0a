"""The command line: exit codes, and what is printed to stdout and stderr."""

import csv
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from plantseg_next import __version__, api, cli
from plantseg_next.cli import using
from plantseg_next.errors import StoppedError
from plantseg_next.models.bundle import read_card
from plantseg_next.models.start import STARTER_FOLDER
from plantseg_next.settings import Settings, setting_names
from plantseg_next.training.run_record import environment_info

pytestmark = pytest.mark.integration


def run(capsys, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["plantseg-next", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


@pytest.fixture
def call(capsys, monkeypatch):
    return lambda *words: run(capsys, monkeypatch, *words)


def test_cli_import_loads_no_large_package():
    code = (
        "import sys; from plantseg_next.cli import app; "
        "heavy = {'torch', 'numpy', 'cv2', 'PIL', 'pydantic', 'rich.progress'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_help_lists_the_commands(call):
    code, out, _ = call("--help")
    assert code == 0
    for command in ("check", "plan", "train", "evaluate", "predict", "demo", "data"):
        assert f"\n  {command} " in out
    assert call("--version")[1].strip() == __version__


def test_api_import_does_not_load_torch():
    code = (
        "import sys; import plantseg_next.api, plantseg_next.inference.predictor; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_unreadable_budget_is_refused_before_torch_is_loaded(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import would fail
    code, _, err = call("train", ".", "--memory", "2GX")
    assert code == 2
    assert "The memory is '2GX'." in err


def test_check_prints_text_or_json(call, drawn_folder):
    code, out, _ = call("check", drawn_folder)
    assert code == 0
    assert "Nothing found that would spoil training" in out
    code, out, _ = call("check", drawn_folder, "--json")
    assert json.loads(out)["spoils_training"] is False


def test_check_exits_with_1_if_training_would_fail(call, tmp_path):
    for kind, size in (("images", (40, 40)), ("masks", (30, 40))):
        (tmp_path / kind).mkdir()
        Image.new("L", size).save(tmp_path / kind / "a.png")
    code, out, _ = call("check", tmp_path)
    assert code == 1
    assert "ERROR" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "nowhere"], "`nowhere` does not exist"),
        (["train"], "train was called without a data set"),
        (["train", ".", "--set", "training.rat=1"], "the nearest is `training.lr`"),
        (["train", ".", "--config", "none.yaml"], "none.yaml"),
        (["evaluate", ".", "--split", "tests"], "--split is 'tests'"),
        (["predict", "nowhere", "."], "holds no trained model"),
        (["predict", "nowhere"], "`nowhere` does not exist"),
        (["predict", "a.png", "a.png", "a.png"], "predict got 3 paths."),
    ],
)
def test_wrong_use_exits_with_2_and_a_fix(call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    code, _, err = call(*words)
    assert code == 2
    assert message in err
    assert "to do:" in err


def test_check_of_an_empty_folder_is_refused(call, tmp_path):
    code, _, err = call("check", tmp_path)
    assert code == 2
    assert "holds no images" in err


def test_train_settings_prints_every_setting_with_its_description(call, tmp_path):
    code, out, _ = call("train", "--settings", "--set", "training.lr=3e-4")
    assert code == 0
    assert "  # Peak learning rate of the decoder.\n  lr: 0.0003\n" in out
    assert {name.rsplit(".", 1)[-1] for name in setting_names()} <= {
        line.partition(":")[0].strip() for line in out.splitlines()
    }
    path = tmp_path / "settings.yaml"
    path.write_text(out, "utf-8")
    assert Settings.read(path).training.lr == 3e-4
    assert call("train", "--settings", "--config", path)[1] == out


def test_old_option_names_are_refused(call, drawn_folder):
    for words in (
        ("train", drawn_folder, "--unlabelled", drawn_folder),
        ("check", drawn_folder, "--names", "names.yaml"),
        ("data", "fetch", "plantvillage"),
        ("data", "names", drawn_folder),
    ):
        code, _, err = call(*words)
        assert code == 2
        assert "No such" in err


def test_class_names_proposes_a_file_that_check_reads(call, drawn_folder, tmp_path):
    path = tmp_path / "names.yaml"
    code, out, _ = call("data", "class-names", drawn_folder, "--out", path)
    assert code == 0
    assert drawn_folder.name in out
    assert call("check", drawn_folder, "--class-names", path)[0] == 0


def test_train_evaluate_and_predict_on_the_command_line(call, drawn_folder, tmp_path):
    few = ["minutes=null", "steps=4", "batch=2", "validations=1", "validation_images=2"]
    sets = [w for s in few for w in ("--set", f"training.{s}")]
    sets += [
        "--set",
        "model.start=imagenet",
        "--set",
        "data.tile_px=64",
        "--set",
        "data.workers=0",
        "--set",
        "model.width=32",
    ]
    code, out, err = call("train", drawn_folder, "--out", tmp_path / "run", *sets)
    assert code == 0
    assert "4 steps in" in out
    assert "\n4 steps are few: a model improves much up to about 300 (coffee" in out
    assert "\nbest on the validation split: lesion Dice 0." in out
    assert " to 0." in out
    assert ", 2 images), disease mIoU 0." in out
    text = " ".join(err.split())  # lines are wrapped
    assert "4 steps are few: a model improves much" in text
    assert "weights: tf_efficientnet_lite1 (ImageNet), license apache-2.0" in text
    code, out, err = call("train", drawn_folder, "--out", tmp_path / "run", *sets)
    assert code == 0
    assert "The run is finished already." in err
    sets[-1] = "model.width=64"
    code, out, err = call("train", drawn_folder, "--out", tmp_path / "run", *sets)
    assert code == 2
    assert "model.width: 32 in the run, 64 now" in err
    code, out, _ = call("evaluate", tmp_path / "run", "--out", tmp_path / "report")
    assert code == 0
    assert (tmp_path / "report" / "report.json").exists()
    images = drawn_folder / "images"
    code, out, _ = call("predict", tmp_path / "run", images, "--out", tmp_path / "out")
    assert code == 0
    assert "40 images measured" in out
    assert "... and 28 more" in out


def test_predict_without_a_model_uses_the_starter(call, drawn_folder, tmp_path):
    digest = read_card(STARTER_FOLDER).sha256[:12]
    image = min((drawn_folder / "images").iterdir())
    code, out, _ = call("predict", image, "--out", tmp_path / "one")
    assert code == 0
    assert "1 images measured" in out
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        shutil.copy(image, tmp_path / "images" / f"{name}{image.suffix}")
    code, out, _ = call("predict", tmp_path / "images", "--out", tmp_path / "two")
    assert code == 0
    assert "2 images measured" in out
    for folder, n in (("one", 1), ("two", 2)):
        with (tmp_path / folder / "severity.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["model"] for row in rows] == [digest] * n
        assert {row["denominator"] for row in rows} == {"leaf"}


def test_defaults_are_those_of_the_python_api():
    for name in ("predict", "pseudo_label"):
        command, function = (
            inspect.signature(getattr(module, name)).parameters for module in (using, api)
        )
        for option in {"min_lesion_px", "threshold"} & {*function}:
            assert command[option].default == function[option].default


def test_predict_with_three_paths_is_refused(call, drawn_folder, tmp_path):
    images = sorted((drawn_folder / "images").iterdir())[:3]
    code, _, err = call("predict", *images, "--out", tmp_path / "out")
    assert code == 2
    assert "predict got 3 paths." in err
    assert "one folder or image, or a model and one folder or image" in err
    assert "put the images into one folder" in err
    assert not (tmp_path / "out").exists()


def test_predict_without_a_path_is_refused(call):
    code, _, err = call("predict")
    assert code == 2
    assert "IMAGES" in err


def test_out_of_memory_in_opencv_is_reported(call, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("OpenCV(4.11) error: (-4:Insufficient memory) Failed to alloc")

    monkeypatch.setattr("plantseg_next.api.predict", fail)
    code, _, err = call("predict", "leaf.jpg")
    assert code == 1
    assert "error: Memory ran out (OpenCV" in err


@pytest.mark.parametrize(
    ("error", "came", "needed", "fix"),
    [
        (PermissionError(13, "Permission denied", "a/b"),
         "`a/b` cannot be read or written: Permission denied.",
         "your permission to use it", "ask its owner for it, or choose another path"),
        (OSError(36, "File name too long", "a", None, "b"),
         "`b` cannot be read or written: File name too long.",
         "names of up to 255 bytes, in a path of up to 4,096", "choose another path"),
        (OSError(28, "No space left"), "The operating system reports: No space left.",
         "free space on the disk", "free some space, or choose another path"),
        (OSError(30, "Read-only file system", "c"),
         "`c` cannot be read or written: Read-only file system.",
         "a disk that is not read-only", "choose another path"),
        (OSError(5, "Input/output error", "c"),
         "`c` cannot be read or written: Input/output error.",
         "a file system without errors", "choose another path"),
    ],
)  # fmt: skip
def test_refusal_of_the_operating_system_is_reported(
    call, monkeypatch, error, came, needed, fix
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("plantseg_next.api.predict", fail)
    code, _, err = call("predict", "leaf.jpg")
    assert code == 2
    assert err.splitlines()[-3:] == [
        f"error: {came}", f"  needed: {needed}", f"  to do:  {fix}"
    ]  # fmt: skip


def test_error_of_a_library_is_a_bug(monkeypatch):
    def fail(*_, **__):
        raise OSError("image file is truncated")

    monkeypatch.setattr("plantseg_next.api.predict", fail)
    monkeypatch.setattr(sys, "argv", ["plantseg-next", "predict", "leaf.jpg"])
    with pytest.raises(OSError, match="truncated"):
        cli.main()


COMMANDS = (
    "check PATH", "check DATA --classes PATH", "check DATA --class-names PATH",
    "plan PATH --memory 2GB", "plan DATA --memory 2GB --config PATH",
    "train PATH --out OUT", "train DATA --out PATH", "train DATA --plan PATH --out OUT",
    "train DATA --unlabeled PATH --out OUT", "train DATA --pseudo-labels PATH --out OUT",
    "train DATA --set model.start=PATH --out OUT", "predict PATH --out OUT",
    "predict PATH DATA --out OUT", "predict DATA --out PATH", "evaluate PATH",
    "evaluate starter PATH", "evaluate starter DATA --out PATH",
    "pseudo-label PATH IMAGES --out OUT", "pseudo-label starter PATH --out OUT",
    "self-train PATH --out OUT", "self-train DATA --out PATH", "status PATH",
    "watch PATH", "verify PATH", "demo --out PATH", "data class-names PATH",
    "data class-names DATA --out PATH",
)  # fmt: skip


@pytest.mark.parametrize("path", ["x" * 500, "x/" * 3000], ids=["name", "path"])
@pytest.mark.parametrize("command", COMMANDS)
def test_path_that_is_too_long_is_an_error_of_the_user(
    call, drawn_folder, tmp_path, monkeypatch, command, path
):
    monkeypatch.chdir(tmp_path)
    named = {"DATA": drawn_folder, "IMAGES": drawn_folder / "images", "OUT": "out"}
    words = [named.get(word, word.replace("PATH", path)) for word in command.split()]
    code, _, err = call(*words)
    assert code in (1, 2)
    assert "error: `" in err
    assert "File name too long" in err
    assert "\n  needed: " in err
    assert "\n  to do:  " in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["device", "pipe", "pipe.jpg", "pipe.json", "loop"])
@pytest.mark.parametrize(
    "command", ["check PATH", "check PATH DATA", "predict PATH --out OUT",
                "predict PATH DATA --out OUT", "evaluate starter PATH",
                "train PATH --out OUT", "plan PATH --memory 2GB",
                "pseudo-label starter PATH --out OUT"],
)  # fmt: skip
def test_path_of_no_file_and_no_folder_is_refused(
    call, drawn_folder, tmp_path, command, kind
):
    path = tmp_path / kind
    if kind == "device":
        path = Path(os.devnull)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        os.mkfifo(path)
    named = {"DATA": drawn_folder, "OUT": tmp_path / "out", "PATH": path}
    code, _, err = call(*(named.get(word, word) for word in command.split()))
    assert code == 2
    if "predict PATH DATA" in command:
        assert f"error: `{path}` holds no trained model." in err
    elif kind == "loop":
        assert f"error: `{path}` does not exist." in err
    else:
        assert f"error: `{path}` is neither a folder nor a regular file." in err
    assert "\n  needed: " in err
    assert "\n  to do:  " in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["check DATA", "predict DATA --out OUT"])
@pytest.mark.parametrize("name", ["images", "masks", "index.csv"])
def test_part_of_a_data_set_that_may_not_be_read_is_reported(
    call, drawn_folder, tmp_path, monkeypatch, command, name
):
    data = tmp_path / "data"
    shutil.copytree(drawn_folder, data)

    def refuse(function):
        def maybe(path, *arguments, **named):
            if str(path) == str(data / name):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *arguments, **named)

        return maybe

    monkeypatch.setattr(os, "scandir", refuse(os.scandir))  # root may read everything
    monkeypatch.setattr(Path, "open", refuse(Path.open))
    monkeypatch.setattr(Path, "read_text", refuse(Path.read_text))
    named = {"DATA": data, "OUT": tmp_path / "out"}
    code, _, err = call(*(named.get(word, word) for word in command.split()))
    assert code == 1
    assert f"`{data / name}` cannot be read: Permission denied." in err


def test_stopped_run_names_the_command_without_restart(call, monkeypatch, drawn_folder):
    def train(*_, **__):
        raise StoppedError(3, 9, signal.SIGTERM)

    monkeypatch.setattr("plantseg_next.api.train", train)
    for words, message in (
        ((), "The same command resumes"),
        (("--restart",), "The same command without --restart resumes"),
    ):
        assert message in call("train", drawn_folder, "--out", "r", *words)[2]
    monkeypatch.setattr(sys, "argv", ["plantseg-next", "train", "d", "--restart"])
    assert environment_info("cpu", 1)["command"] == ["plantseg-next", "train", "d"]
