import re
from pathlib import Path

import pytest
import yaml

from plantseg_next.errors import UsageError
from plantseg_next.old_settings import REMOVED, RENAMED
from plantseg_next.settings import Mark, Settings, flat_settings, setting_names

UNSET_NUMBERS = (
    "data.workers",
    "training.micro_batch",
    "training.layer_decay",
    "memory.budget_mb",
    "memory.loss_chunk_rows",
)
"""Settings of a number whose default is null."""


def test_settings_written_to_disk_are_read_unchanged(tmp_path):
    settings = Settings().with_settings(["training.lr=3e-4", "data.scale=[0.5, 2]"])
    settings.write(tmp_path / "settings.yaml")
    assert Settings.read(tmp_path / "settings.yaml") == settings
    assert settings.data.scale == (0.5, 2.0)


def test_set_null_and_words_are_read_as_yaml():
    settings = Settings().with_settings(
        ["training.minutes=null", "model.encoder=convnextv2_tiny"]
    )
    assert settings.training.minutes is None
    assert settings.model.encoder == "convnextv2_tiny"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("training.rat", "training.lr"),
        ("lr", "training.lr"),
        ("model.lr", "training.lr"),
        ("data.tile_pixels", "data.tile_px"),
        ("seeed", "seed"),
    ],
)
def test_unknown_key_names_the_nearest_setting(typed, meant):
    with pytest.raises(UsageError) as caught:
        Settings().with_settings([f"{typed}=1"])
    assert f"there is no setting `{typed}`" in str(caught.value)
    assert f"the nearest is `{meant}`" in str(caught.value)


def test_unknown_key_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {rat: 1}")
    with pytest.raises(
        UsageError, match=r"mine\.yaml: there is no setting `training\.rat`"
    ):
        Settings.read(path)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("training.lr=-1", "`training.lr` is -1"),
        ("training.lr=fast", "`training.lr` is 'fast'"),
        ("data.tile_px=100", "multiple of 32"),
        ("memory.optimizer=sgd", "`memory.optimizer` is 'sgd'"),
        ("training.lr=nan", "`training.lr` is"),
        ("data=3", "there is no setting `data`"),
        ("rate", "key=value"),
        ("training.lr=[", "--set training.lr: '[' is not a value"),
        ("data.scale=[2, 0.5]", "the smallest magnification must come first"),
        ("data.scale=[0, 1]", "greater than or equal to 0.05"),
        ("seed=5000000000", "less than 4294967296"),
        ("seed=true", "`seed` is True.\n  needed: a value other than true or false"),
        ("training.minutes=on", "`training.minutes` is True"),
        ("data.scale=[true, 2]", "`data.scale` is [True, 2]"),
        ("data.weights={a: [1, false, 9]}", "`data.weights` is (('a', [1, False, 9]),)"),
        ("training.steps=010", "'010' is not a value (`010` means 8 in YAML; write"),
        ("training.minutes=1:30", "'1:30' is not a value (`1:30` means 90 in YAML; write"),
        ("training.minutes=1:30.5", "(`1:30.5` means 90.5 in YAML; write that number"),
        ("data.scale=[01, 2]", "`01` means 1 in YAML"),
        ("data.weights={a: 1, a: 2}", "is not a value (`a` is stated twice)"),
        ("seed=2026-13-01", "is not a value (not YAML: month must be in 1..12)"),
        ("training.minutes=", "--set got 'training.minutes='"),
    ],
)
def test_wrong_value_is_explained(pair, message):
    with pytest.raises(UsageError) as caught:
        Settings().with_settings([pair])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "pair",
    [
        "data.tile_px=1000000000000",
        "data.scale=[1e-9, 1]",
        "data.workers=10000000000",
        "training.batch=1000000000",
        "training.steps=99999999999999999999999",
        "model.width=1000000000",
        "model.layers=100000",
    ],
)
def test_sizes_that_no_machine_has_are_refused(pair):
    with pytest.raises(UsageError, match=r"--set: `.*` (is|contains)") as refused:
        Settings().with_settings([pair])
    assert "should be" in refused.value.needed


def test_value_that_contains_itself_is_refused():
    with pytest.raises(UsageError, match=r"training\.steps: .*a value contains itself"):
        Settings().with_settings(["training.steps=&a [*a]"])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("data.weights={x:2}", "`data.weights` contains None"),
        ("data.scale=[a, 2]", "`data.scale` contains 'a'"),
    ],
)
def test_wrong_part_of_a_value_is_explained_by_its_setting(pair, message):
    with pytest.raises(UsageError, match=message):
        Settings().with_settings([pair])


def test_file_without_a_tree_is_explained(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"broken\.yaml` is not text in UTF-8"):
        Settings.read(path)
    for text in ("", "# nothing\n", "{}"):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"broken\.yaml` holds no setting") as caught:
            Settings.read(path)
        assert caught.value.fix.startswith("restore it from a copy; ")
    path.write_text("just words")
    with pytest.raises(UsageError, match=r"broken\.yaml: the content is 'just words'"):
        Settings.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  steps: 010\n", r"`010` means 8 in YAML; .*\n.*line 2, column 10"),
        ("training: {minutes: 1:30}", "`1:30` means 90 in YAML"),
        ("seed: 1\nseed: 2", "`seed` is stated twice"),
        ("data: {tile_px: 64}\ndata: {workers: 0}", "`data` is stated twice"),
    ],
)
def test_file_with_a_value_that_is_not_what_it_looks_like_is_refused(
    tmp_path, text, message
):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"mine\.yaml` cannot be read: {message}"):
        Settings.read(path)


def test_numbers_in_a_file_are_read_as_they_look(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "training: {lr: 3e-4, steps: 1e3, weight_decay: .5}\nseed: 1_000\n"
        "deterministic: true\nmemory: {budget_mb: 0x10}\ndata: {scale: [5e-1, 2E0]}\n"
    )
    settings = Settings.read(path)
    assert settings.training.lr == 3e-4
    assert settings.training.steps == settings.seed == 1000
    assert settings.training.weight_decay == 0.5
    assert settings.memory.budget_mb == 16
    assert settings.data.scale == (0.5, 2.0)
    assert settings.deterministic


def test_all_loss_terms_zero_is_refused():
    parts = ("ohem_ce", "focal_tversky", "leaf", "disease")
    with pytest.raises(UsageError, match="above 0"):
        Settings().with_settings([f"loss.{part}=0" for part in parts])


def test_number_of_settings_is_55():
    """Every setting is part of the public interface: change this number on purpose."""
    assert len(setting_names()) == 55


def test_settings_that_may_change_on_resume_are_starred_in_the_reference():
    names = setting_names(Mark.MAY_CHANGE)
    assert "training.micro_batch" in names
    assert "seed" not in names
    page = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"
    starred = re.findall(r"^\| `([\w.]+)` \*", page.read_text("utf-8"), re.M)
    assert starred == names


def test_mark_of_a_part_holds_for_all_its_settings():
    names = set(setting_names(Mark.PLANNED))
    assert {n for n in setting_names() if n.startswith("memory.")} < names
    assert "data.tile_px" in names
    assert "training.batch" not in names


@pytest.mark.parametrize("old", [*RENAMED, *sorted(REMOVED)])
def test_old_setting_is_refused_with_its_new_name(old):
    with pytest.raises(UsageError) as caught:
        Settings().with_settings([f"{old}=1"])
    if old in REMOVED:
        assert f"the setting `{old}` was removed" in caught.value.came
        assert old not in setting_names()
    else:
        assert f"`{old}` is an old name" in caught.value.came
        assert f"its new name, `{RENAMED[old]}`" in caught.value.needed
        names = setting_names()
        assert any(n == RENAMED[old] or n.startswith(f"{RENAMED[old]}.") for n in names)


def test_old_section_in_a_file_is_refused_with_its_new_name(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("unlabelled:\n  gate: [energy]\n")
    with pytest.raises(UsageError, match="`unlabelled` is an old name") as caught:
        Settings.read(path)
    assert "its new name, `semi`" in caught.value.needed


def test_commented_yaml_is_read_unchanged(tmp_path):
    settings = Settings().with_settings(
        ["training.lr=3e-4", "data.weights={field: 2.0, village: [1.0, 0.2, 20000]}"]
    )
    path = tmp_path / "settings.yaml"
    path.write_text(settings.to_commented_yaml(), "utf-8")
    assert Settings.read(path) == settings


def test_commented_yaml_describes_every_setting():
    lines = Settings().to_commented_yaml().splitlines()
    assert max(map(len, lines)) <= 92
    names, section = [], ""
    for before, line in zip(["", *lines], lines, strict=False):
        name, colon, value = line.partition(":")
        if line.lstrip().startswith(("#", "-")) or not colon:
            continue
        assert before.lstrip().startswith("# "), f"{line} has no comment above it"
        if line.startswith(" "):
            names.append(f"{section}.{name.strip()}")
        elif value:
            names.append(name)
        else:
            section = name
    assert names == setting_names()
    assert yaml.safe_load("\n".join(lines)) == yaml.safe_load(Settings().to_yaml())


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, value in flat_settings(Settings()).items()
        if type(value) in (int, float) or name in UNSET_NUMBERS
    ],
)
def test_numbers_have_an_upper_limit_that_the_error_states(name):
    with pytest.raises(UsageError, match=f"`{name}` is 1") as caught:
        Settings().with_settings([f"{name}=100000000000000000000000"])
    assert re.search(r"less than (or equal to )?\d", caught.value.needed)


def test_long_or_deep_values_are_cut_in_errors():
    for text in ("x" * 10**5, "[" * 300 + "]" * 300, "9" * 5000):
        with pytest.raises(UsageError) as caught:
            Settings().with_settings([f"training.steps={text}"])
        assert len(caught.value.came) < 500
    with pytest.raises(UsageError, match="at most 200 characters"):
        Settings().with_settings([f"model.encoder={'x' * 10**5}"])


@pytest.mark.parametrize("weight", ["1e300", "[1, 1e300, 5]", "[1, 2, 10000000000000]"])
def test_sampling_weights_have_an_upper_limit(weight):
    with pytest.raises(UsageError) as caught:
        Settings().with_settings([f"data.weights={{a: {weight}}}"])
    assert caught.value.needed == (
        "the weight of a is above 1e6, or over more than 1e12 samples"
    )
