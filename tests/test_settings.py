import pytest

from plantseg_next.errors import UsageError
from plantseg_next.settings import Experiment, setting_names


def test_settings_come_back_from_disk(tmp_path):
    settings = Experiment().with_settings(["training.rate=3e-4", "data.scale=[0.5, 2]"])
    settings.write(tmp_path / "settings.yaml")
    assert Experiment.read(tmp_path / "settings.yaml") == settings
    assert settings.data.scale == (0.5, 2.0)


def test_null_and_words_mean_what_they_say():
    settings = Experiment().with_settings(
        ["training.minutes=null", "model.encoder=convnextv2_tiny"]
    )
    assert settings.training.minutes is None
    assert settings.model.encoder == "convnextv2_tiny"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("training.rat", "training.rate"),
        ("rate", "training.rate"),
        ("model.rate", "training.rate"),
        ("data.tile_pixels", "data.tile_px"),
        ("seeed", "seed"),
    ],
)
def test_an_unknown_key_names_its_nearest_neighbor(typed, meant):
    with pytest.raises(UsageError) as caught:
        Experiment().with_settings([f"{typed}=1"])
    assert f"there is no setting `{typed}`" in str(caught.value)
    assert f"the nearest is `{meant}`" in str(caught.value)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {rat: 1}")
    with pytest.raises(
        UsageError, match=r"mine\.yaml: there is no setting `training\.rat`"
    ):
        Experiment.read(path)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("training.rate=-1", "`training.rate` is -1"),
        ("training.rate=fast", "`training.rate` is 'fast'"),
        ("data.tile_px=100", "multiple of 32"),
        ("memory.optimizer=sgd", "`memory.optimizer` is 'sgd'"),
        ("training.rate=nan", "`training.rate` is"),
        ("data=3", "there is no setting `data`"),
        ("rate", "key=value"),
        ("training.rate=[", "--set training.rate: '[' is no value"),
        ("data.scale=[2, 0.5]", "the least magnification comes first"),
        ("data.scale=[0, 1]", "greater than 0"),
        ("seed=5000000000", "less than 4294967296"),
    ],
)
def test_wrong_values_are_explained(pair, said):
    with pytest.raises(UsageError) as caught:
        Experiment().with_settings([pair])
    assert said in str(caught.value)


def test_a_file_that_is_no_yaml_is_explained(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"broken\.yaml` cannot be read"):
        Experiment.read(path)
    path.write_text("just words")
    with pytest.raises(UsageError, match=r"broken\.yaml: the whole is 'just words'"):
        Experiment.read(path)


def test_a_run_must_learn_from_something():
    parts = ("hardest_pixels", "focal_tversky", "leaf", "disease")
    with pytest.raises(UsageError, match="above 0"):
        Experiment().with_settings([f"loss.{part}=0" for part in parts])


def test_the_surface_of_settings_is_known():
    """A new setting is a promise to users: adding one changes this number on purpose."""
    assert len(setting_names()) == 55
