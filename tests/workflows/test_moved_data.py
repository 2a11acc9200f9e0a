"""A run goes on after its data folders were moved, if the files are the same."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import TINY, train_until
from plantseg_next import api
from plantseg_next.data.manifest import Manifest
from plantseg_next.errors import DataError, UsageError
from plantseg_next.training.callbacks.status import read_status
from plantseg_next.training.run_record import RunRecord
from plantseg_next.workflows.moved_data import parse_moves
from plantseg_next.workflows.training_data import DataSources

pytestmark = pytest.mark.integration


@pytest.fixture
def moved(drawn_folder, tmp_path):
    """A stopped run whose data were in ``old`` and are now in ``new``."""
    shutil.copytree(drawn_folder, tmp_path / "old")
    train_until(2, tmp_path / "old", tmp_path / "run", TINY)
    (tmp_path / "old").rename(tmp_path / "new")
    return tmp_path


def test_moved_data_are_refused_with_the_way_to_name_them(moved):
    """After ray-project/ray#28082: absolute paths in what a run resumes from."""
    with pytest.raises(UsageError, match="holds a run of another configuration") as caught:
        api.train(moved / "new", moved / "run", TINY)
    assert caught.value.fix.endswith("if a folder was moved, --data-moved OLD=NEW")


@pytest.mark.parametrize("named", ["old", "new"])
def test_run_with_moved_data_goes_on(moved, monkeypatch, named):
    """After MrNeRF/LichtFeld-Studio#599; the command may name either folder."""
    monkeypatch.chdir(moved)
    for _ in range(2):  # the same command again changes nothing
        summary = api.train(named, "run", TINY, data_moved={"old": "new"}).summary
        assert summary.steps == 6
    assert api.train("new", "run", TINY).summary.steps == 6
    record = RunRecord.read(moved / "run")
    assert record.sources["data"] == str(moved / "new")
    assert record.environment["directory"] == str(moved)
    rows = Manifest.read(moved / "run" / "manifest.json").rows
    folder = (moved / "new").resolve()
    assert all(p.is_relative_to(folder) for row in rows for p in (row.image, row.mask))
    assert f"images     {folder}" in str(read_status(moved / "run"))


def files_of(run):
    return {n: (run / n).read_bytes() for n in ("run.json", "manifest.json")}


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("change", ["delete", "edit", "swap"])
def test_other_files_in_the_new_place_are_refused(moved, kind, change):
    before = files_of(moved / "run")
    one, two = sorted((moved / "new" / kind).iterdir())[:2]
    if change == "delete":
        one.unlink()
    elif change == "edit":
        one.write_bytes(one.read_bytes() + b" ")
    else:
        one.rename(moved / "aside")
        two.rename(one)
        (moved / "aside").rename(two)
    text = r"[12] images? of \d+ in the new place, or their masks, are not those of the run"
    with pytest.raises(DataError, match=text) as caught:
        api.train(
            moved / "new", moved / "run", TINY, data_moved={moved / "old": moved / "new"}
        )
    assert caught.value.needed == (
        "every image and mask that the run learns from, unchanged (SHA-256)"
    )
    assert ("1 missing, as " in caught.value.came) == (change == "delete")
    assert files_of(moved / "run") == before


def test_several_moved_folders_are_followed(drawn_folder, tmp_path):
    names = ("a", "b")
    for name in names:
        shutil.copytree(drawn_folder, tmp_path / "disk" / name / name)
        for path in (tmp_path / "disk" / name / name / "images").iterdir():
            path.write_bytes(path.read_bytes() + name.encode())  # not the same images
    shutil.copytree(drawn_folder / "images", tmp_path / "bare")
    data = [tmp_path / "disk" / name / name for name in names]
    sources = DataSources(data, unlabeled=[tmp_path / "bare"])
    train_until(2, sources, tmp_path / "run", TINY)
    moves = {data[0]: tmp_path / "x" / "a", tmp_path / "bare": tmp_path / "y"}
    for old, new in moves.items():
        new.parent.mkdir(exist_ok=True)
        old.rename(new)
    now = DataSources([moves[data[0]], data[1]], unlabeled=[tmp_path / "y"])
    with pytest.raises(UsageError, match="--unlabeled"):
        api.train(now, tmp_path / "run", TINY, data_moved={data[0]: tmp_path / "x" / "a"})
    assert api.train(now, tmp_path / "run", TINY, data_moved=moves).summary.steps == 6


def test_moves_that_do_not_concern_the_run_are_refused(moved):
    def train(**moves):
        named = {moved / old: moved / new for old, new in moves.items()}
        api.train(moved / "new", moved / "run", TINY, data_moved=named)

    with pytest.raises(UsageError, match="Nothing of the run was in") as caught:
        train(older="run")
    assert caught.value.needed == f"a folder of the run: {moved / 'old'}"
    with pytest.raises(UsageError, match="nowhere` does not exist"):
        train(old="nowhere")
    with pytest.raises(UsageError, match="--data-moved and --restart"):
        api.train(
            moved / "new",
            moved / "run",
            TINY,
            restart=True,
            data_moved={"old": moved / "new"},
        )
    with pytest.raises(UsageError, match="holds no run whose data could have moved"):
        api.train(moved / "new", moved / "x", TINY, data_moved={"old": moved / "new"})
    assert not (moved / "x").exists()


def test_moves_are_read_from_the_command_line(tmp_path):
    (tmp_path / "b=c").mkdir()
    assert parse_moves([f"a={tmp_path}/b=c", "/x=/y"]) == {
        "a": f"{tmp_path}/b=c",
        "/x": "/y",
    }
    for wrong in ("a", "=a", "a=", "="):
        with pytest.raises(UsageError) as caught:
            parse_moves([wrong])
        assert caught.value.needed == "OLD=NEW: where a folder was, and where it is now"
    with pytest.raises(UsageError, match="names `a` twice"):
        parse_moves(["a=b", "a=c"])


def test_record_with_the_old_path_and_a_manifest_with_the_new_is_mended(moved):
    """The command was killed between the two files."""
    record = (moved / "run" / "run.json").read_bytes()
    moves = {moved / "old": moved / "new"}
    api.train(moved / "new", moved / "run", TINY, data_moved=moves)
    (moved / "run" / "run.json").write_bytes(record)
    api.train(moved / "new", moved / "run", TINY, data_moved=moves)
    tree = json.loads((moved / "run" / "run.json").read_text())
    assert Path(tree["sources"]["data"]) == moved / "new"
