import pytest

from plantseg_next.errors import UsageError
from plantseg_next.settings import REMOVED, RENAMED, Settings, setting_names


def test_settings_come_back_from_disk(tmp_path):
    settings = Settings().with_settings(["training.lr=3e-4", "data.scale=[0.5, 2]"])
    settings.write(tmp_path / "settings.yaml")
    assert Settings.read(tmp_path / "settings.yaml") == settings
    assert settings.data.scale == (0.5, 2.0)


def test_null_and_words_mean_what_they_say():
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
def test_an_unknown_key_names_its_nearest_neighbor(typed, meant):
    with pytest.raises(UsageError) as caught:
        Settings().with_settings([f"{typed}=1"])
    assert f"there is no setting `{typed}`" in str(caught.value)
    assert f"the nearest is `{meant}`" in str(caught.value)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {rat: 1}")
    with pytest.raises(
        UsageError, match=r"mine\.yaml: there is no setting `training\.rat`"
    ):
        Settings.read(path)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("training.lr=-1", "`training.lr` is -1"),
        ("training.lr=fast", "`training.lr` is 'fast'"),
        ("data.tile_px=100", "multiple of 32"),
        ("memory.optimizer=sgd", "`memory.optimizer` is 'sgd'"),
        ("training.lr=nan", "`training.lr` is"),
        ("data=3", "there is no setting `data`"),
        ("rate", "key=value"),
        ("training.lr=[", "--set training.lr: '[' is no value"),
        ("data.scale=[2, 0.5]", "the least magnification comes first"),
        ("data.scale=[0, 1]", "greater than 0"),
        ("seed=5000000000", "less than 4294967296"),
    ],
)
def test_wrong_values_are_explained(pair, said):
    with pytest.raises(UsageError) as caught:
        Settings().with_settings([pair])
    assert said in str(caught.value)


def test_a_file_that_is_no_yaml_is_explained(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"broken\.yaml` cannot be read"):
        Settings.read(path)
    path.write_text("just words")
    with pytest.raises(UsageError, match=r"broken\.yaml: the whole is 'just words'"):
        Settings.read(path)


def test_a_run_must_learn_from_something():
    parts = ("ohem_ce", "focal_tversky", "leaf", "disease")
    with pytest.raises(UsageError, match="above 0"):
        Settings().with_settings([f"loss.{part}=0" for part in parts])


def test_the_surface_of_settings_is_known():
    """A new setting is a promise to users: adding one changes this number on purpose."""
    assert len(setting_names()) == 55


@pytest.mark.parametrize("old", [*RENAMED, *sorted(REMOVED)])
def test_old_setting_names_what_it_is_called_now(old):
    with pytest.raises(UsageError) as caught:
        Settings().with_settings([f"{old}=1"])
    if old in REMOVED:
        assert f"there is no setting `{old}` any longer" in caught.value.came
        assert old not in setting_names()
    else:
        assert f"`{old}` is an old name" in caught.value.came
        assert f"`{RENAMED[old]}`, which it is called now" in caught.value.needed
        names = setting_names()
        assert any(n == RENAMED[old] or n.startswith(f"{RENAMED[old]}.") for n in names)


def test_old_section_in_a_file_names_what_it_is_called_now(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("unlabelled:\n  gate: [energy]\n")
    with pytest.raises(UsageError, match="`unlabelled` is an old name") as caught:
        Settings.read(path)
    assert "`semi`, which it is called now" in caught.value.needed
