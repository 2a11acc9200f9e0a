"""What `check` reports of the splits that a run would draw."""

import numpy as np
import pytest
from PIL import Image

from plantseg_next import api
from plantseg_next.errors import UsageError
from plantseg_next.synthetic.folders import write_drawn_folder

pytestmark = pytest.mark.integration


def test_one_scene_is_refused_by_check_as_by_train(tmp_path):
    write_drawn_folder(tmp_path / "one", 1, seed=3, size_hw=(96, 96))
    (image,) = (p for p in tmp_path.rglob("*.jpg") if "mask" not in p.as_posix())
    (mask,) = (p for p in tmp_path.rglob("*.png") if "mask" in p.as_posix())
    pixels, values = np.asarray(Image.open(image)).astype(int), np.array(Image.open(mask))
    values[40:50, 40:50] = 2  # the first drawn leaf is healthy
    for folder in ("images", "masks"):
        (tmp_path / "series" / folder).mkdir(parents=True)
    for day in range(6):
        brighter = np.clip(pixels + 3 * day, 0, 255).astype(np.uint8)
        Image.fromarray(brighter).save(tmp_path / "series" / "images" / f"{day}.png")
        Image.fromarray(values).save(tmp_path / "series" / "masks" / f"{day}.png")
    coding = (tmp_path / "one" / "classes.yaml").read_text()
    (tmp_path / "series" / "classes.yaml").write_text(coding)
    text = (
        "has no image with a mask in its val split (images with masks: train 6, val 0, "
        "test 0). They are 1 group: images of one scene, or of one `group` in index.csv, "
        "are kept in one split."
    )
    (issue,) = api.check(tmp_path / "series").of("error")
    assert issue.code == "no-masks-in-val"
    assert text in issue.text
    with pytest.raises(UsageError) as refused:
        api.train(tmp_path / "series", tmp_path / "run")
    assert text in refused.value.came
    assert "add images of other leaves" in refused.value.fix
