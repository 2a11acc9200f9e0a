"""The command line as a user meets it: exit codes, and what is printed where."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from plantseg_next import __version__, cli


def run(capsys, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["plantseg-next", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


@pytest.fixture
def call(capsys, monkeypatch):
    return lambda *words: run(capsys, monkeypatch, *words)


def test_help_names_every_verb_and_imports_nothing_heavy():
    code = (
        "import sys; from plantseg_next.cli import app; "
        "heavy = {'torch', 'numpy', 'cv2', 'PIL', 'pydantic', 'rich.progress'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_verbs_are_these(call):
    code, out, _ = call("--help")
    assert code == 0
    for verb in ("check", "plan", "train", "evaluate", "predict", "demo"):
        assert f"\n  {verb} " in out
    assert call("--version")[1].strip() == __version__


def test_judging_and_measuring_tables_need_no_torch():
    code = (
        "import sys; import plantseg_next.api, plantseg_next.inference.predictor; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_doctor_speaks_text_and_json(call, drawn_folder):
    code, out, _ = call("check", drawn_folder)
    assert code == 0
    assert "Nothing found that would spoil training" in out
    code, out, _ = call("check", drawn_folder, "--json")
    assert json.loads(out)["spoils_training"] is False


def test_the_doctor_fails_where_training_would(call, tmp_path):
    for kind, size in (("images", (40, 40)), ("masks", (30, 40))):
        (tmp_path / kind).mkdir()
        Image.new("L", size).save(tmp_path / kind / "a.png")
    code, out, _ = call("check", tmp_path)
    assert code == 1
    assert "ERROR" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "nowhere"], "`nowhere` does not exist"),
        (["train"], "train was called without a data set"),
        (["train", ".", "--set", "training.rat=1"], "the nearest is `training.rate`"),
        (["train", ".", "--config", "none.yaml"], "none.yaml"),
        (["evaluate", ".", "--split", "tests"], "--split is 'tests'"),
        (["predict", "nowhere", "."], "holds no trained model"),
    ],
)
def test_wrong_use_ends_with_2_and_says_what_to_do(
    call, tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    code, _, err = call(*words)
    assert code == 2
    assert said in err
    assert "to do:" in err


def test_an_empty_folder_is_explained(call, tmp_path):
    code, _, err = call("check", tmp_path)
    assert code == 2
    assert "holds no pictures" in err


def test_all_settings_can_be_read(call):
    code, out, _ = call("train", "--settings", "--set", "training.rate=3e-4")
    assert code == 0
    assert "rate: 0.0003" in out


def test_the_whole_way_on_the_command_line(call, drawn_folder, tmp_path):
    few = ["minutes=null", "steps=4", "batch=2", "validations=1", "validation_pictures=2"]
    sets = [w for s in few for w in ("--set", f"training.{s}")]
    sets += [
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
    assert "weights: random start" in err
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
    pictures = drawn_folder / "images"
    code, out, _ = call("predict", tmp_path / "run", pictures, "--out", tmp_path / "out")
    assert code == 0
    assert "40 pictures measured" in out
    assert "... and 28 more" in out
