"""A sheet of images and their masks to look at: one HTML page without scripts."""

from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from html import escape
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from plantseg_next.data.manifest import Manifest
from plantseg_next.data.quality.inspect import ImageStats
from plantseg_next.data.quality.issues import CheckReport, distinct_names, printable
from plantseg_next.data.quality.mask_fit import read_masks
from plantseg_next.data.quality.suspects import Suspect, find_suspects
from plantseg_next.errors import OutputError, PlantSegError, UsageError, count_of
from plantseg_next.files import explained, write_atomically
from plantseg_next.inference.overlay import Color, class_colors, draw_masks, resized
from plantseg_next.structures import IGNORE

SHOWN = 24
"""Images on a sheet."""
MOST_SUSPECTS = 18
"""Of them, images that may be wrong; the others are a sample of the data set."""
MAX_BYTES = 3_900_000

_LONG_SIDE_PX = 480
_TINT = 0.45
_QUALITIES = (82, 65, 45, 25)
_MARK = "<!-- a sheet of plantseg-next check -->"
_STYLE = """
:root { color-scheme: light dark; --line: #c9ced6; --soft: #59636e; --card: #ffffff;
  --page: #f3f4f6; --text: #1f2328; --warn: #9a3412; --warn-page: #fff3e8 }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --soft: #9da7b3;
  --card: #1b2027; --page: #0f1318; --text: #e6edf3; --warn: #ffb77a;
  --warn-page: #33231a } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 84rem; background: var(--page);
  color: var(--text); font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.3rem; margin: 0 0 .3rem }
h2 { font-size: 1.05rem; margin: 1.4rem 0 .5rem }
p { margin: .3rem 0 } .soft { color: var(--soft) }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill,
  minmax(min(100%, 25rem), 1fr)) }
article { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .6rem; break-inside: avoid; overflow-wrap: anywhere }
h3 { font-size: .95rem; margin: 0 0 .4rem }
.pair { display: flex; gap: 4px } .pair img { width: 50%; height: auto; min-width: 0;
  object-fit: contain; align-self: flex-start; border-radius: 3px }
.pair img:only-child { width: 100% }
.why { color: var(--warn); background: var(--warn-page); border-radius: 4px;
  padding: .15rem .45rem; margin: .4rem 0 .2rem }
.meta { font-size: .85rem; color: var(--soft); margin: .35rem 0 0 }
.key { display: inline-block; white-space: nowrap; margin-right: .8rem }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .3em;
  border: 1px solid #0008; vertical-align: -.05em; print-color-adjust: exact;
  -webkit-print-color-adjust: exact }
@media print { body { background: #fff; color: #000; padding: 0 } .cards {
  grid-template-columns: 1fr 1fr } }
"""


@dataclass(frozen=True)
class _Card:
    """One image of the sheet, as it is drawn.

    Args:
        title: Its name.
        images: The image, and the image with its mask if it has one.
        reasons: Why it is shown.
        legend: Name, color and percent of what is marked.
        about: Size, split and label.
    """

    title: str
    images: tuple[UInt8[np.ndarray, "h w 3"], ...]
    reasons: tuple[str, ...]
    legend: tuple[tuple[str, Color, float], ...]
    about: str


def refuse_sheet(path: Path) -> None:
    """Refuse the path of a sheet, before anything is read.

    Raises:
        UsageError: If it does not end in .html.
        OutputError: If it is a folder, or a file that is no sheet.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(
            f"The sheet would be written to `{path}`.",
            needed="a file that ends in .html",
            fix="for example --sheet sheet.html",
        )
    with explained(path):
        if path.exists() and _MARK not in path.read_text("utf-8", "replace")[:500]:
            raise OutputError(
                f"`{path}` exists, and is no sheet of `check`.",
                needed="a new file, or an earlier sheet to replace",
                fix="choose another name for --sheet",
            )


def write_sheet(
    path: Path,
    manifest: Manifest,
    all_stats: Sequence[ImageStats],
    report: CheckReport,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Write a page with the images that may be wrong, and a sample of the others.

    Args:
        path: The HTML file.
        manifest: The images, in their splits.
        all_stats: Statistics of its rows.
        report: Of the same images.
        on_progress: Called after each mask that is compared with its image.

    Raises:
        OutputError: If the file cannot be written.
    """
    by_key = {stats.row.key: stats for stats in all_stats}
    pairs = [(by_key[one], by_key[other]) for one, other in report.same_scene]
    suspects = find_suspects(manifest, all_stats, pairs, on_progress)
    shown = suspects[:MOST_SUSPECTS]
    known = {suspect.stats.row.key for suspect in suspects}
    sample = _sample([stats for stats in all_stats if stats.row.key not in known])
    shown += [Suspect(stats, 0.0, ()) for stats in sample[: SHOWN - len(shown)]]
    names = distinct_names([suspect.stats.row.image for suspect in shown])
    cards = [
        card
        for suspect, name in zip(shown, names, strict=True)
        if (card := _card(suspect, name, manifest)) is not None
    ]
    page = ""
    for quality in _QUALITIES:
        page = _page(cards, report, len(suspects), quality)
        if len(page) <= MAX_BYTES:
            break
    with explained(path):
        write_atomically(path, page.encode("utf-8", "backslashreplace"))


def _sample(all_stats: Sequence[ImageStats]) -> list[ImageStats]:
    """Return rows in turn of every data set, split and set of classes; labeled ones first.

    The order within each is that of a hash, so the sample is the same every time.
    """
    kinds: dict[tuple[object, ...], list[ImageStats]] = defaultdict(list)
    for stats in all_stats:
        if stats.file is not None:
            shown = tuple(stats.mask.lesion_px) if stats.mask else (stats.row.disease,)
            is_bare = stats.mask is None
            kinds[is_bare, stats.row.source, str(shown), stats.row.split].append(stats)
    for own in kinds.values():
        own.sort(key=lambda stats: sha256(stats.row.key.encode(errors="replace")).digest())
    labeled = zip_longest(*(own for kind, own in kinds.items() if not kind[0]))
    bare = zip_longest(*(own for kind, own in kinds.items() if kind[0]))
    return [stats for turn in (*labeled, *bare) for stats in turn if stats is not None]


def _card(suspect: Suspect, name: str, manifest: Manifest) -> _Card | None:
    """Return an image as the sheet shows it; ``None`` if it cannot be read."""
    row = suspect.stats.row
    reasons = suspect.reasons
    try:
        image, lesion, leaf = read_masks(row, manifest)
    except PlantSegError:  # the mask cannot be shown; the reasons say why
        try:
            image, lesion, leaf = read_masks(replace(row, mask=None), manifest)
        except PlantSegError:
            return None
    height, width = lesion.shape
    images = [resized(image, _LONG_SIDE_PX)]
    colors = class_colors(len(manifest.classes.lesions))
    legend: list[tuple[str, Color, float]] = []
    if (lesion != IGNORE).any() or (leaf != IGNORE).any():
        images.append(draw_masks(image, lesion, leaf, colors, _LONG_SIDE_PX, _TINT))
        pixels = np.bincount(lesion.ravel(), minlength=256)
        legend = [
            (class_name, colors[i - 1], 100 * pixels[i] / lesion.size)
            for i, class_name in enumerate(manifest.classes.lesions, start=1)
            if pixels[i]
        ]
        if (leaf == 1).any():
            legend.append(("leaf", (255, 255, 255), 100 * float((leaf == 1).mean())))
    about = [f"{width} x {height} px", row.split or "no split"]
    about += [f"labeled {row.disease}"] if row.disease else []
    about += ["no mask"] if row.mask is None else []
    return _Card(name, tuple(images), reasons, tuple(legend), ", ".join(about))


def _page(
    cards: Sequence[_Card], report: CheckReport, n_suspects: int, quality: int
) -> str:
    suspects = [card for card in cards if card.reasons]
    others = [card for card in cards if not card.reasons]
    names = ", ".join(source.name for source in report.sources)
    n_images = sum(source.images for source in report.sources)
    n_masks = sum(source.masks for source in report.sources)
    counts = f"{count_of(n_images, 'image')}, {count_of(n_masks, 'mask')}"
    parts = [
        "<!doctype html>",
        _MARK,
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{_safe(names)}: images and masks</title><style>{_STYLE}</style></head>",
        f"<body><h1>{_safe(names)}</h1>",
        f"<p>{_safe(counts)}. {_safe(report.severity)}</p>",
        '<p class="soft">Left the image, right the same with its mask: lesions in color, '
        "the leaf with a white line. Look whether each line follows what it should. "
        "The order comes from measures that can be wrong: a mask is wrong only if you see "
        "it.</p>",
    ]
    if suspects:
        more = n_suspects - len(suspects)
        rest = f" (of {n_suspects})" if more > 0 else ""
        parts.append(f"<h2>Look at these first: {len(suspects)}{rest}</h2>")
        parts += ['<div class="cards">', *_articles(suspects, quality), "</div>"]
    if others:
        parts.append(f"<h2>A sample of the others: {len(others)}</h2>")
        parts += ['<div class="cards">', *_articles(others, quality), "</div>"]
    if not cards:
        parts.append("<p>No image can be shown.</p>")
    return "\n".join([*parts, "</body></html>", ""])


def _articles(cards: Sequence[_Card], quality: int) -> Iterator[str]:
    for card in cards:
        alts = ("image", "image with its mask")
        images = "".join(
            f'<img alt="{alt}" width="{image.shape[1]}" height="{image.shape[0]}" '
            f'src="data:image/jpeg;base64,{_jpeg(image, quality)}">'
            for image, alt in zip(card.images, alts, strict=False)
        )
        why = f'<p class="why">{_safe(" ".join(card.reasons))}</p>' if card.reasons else ""
        legend = "".join(
            f'<span class="key"><i style="background:rgb{color}"></i>'
            f"{_safe(name)} {percent:.2g} %</span>"
            for name, color, percent in card.legend
        )
        yield (
            f'<article><h3>{_safe(card.title)}</h3><div class="pair">{images}</div>{why}'
            f'<p class="meta">{legend}{_safe(card.about)}</p></article>'
        )


def _jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int) -> str:
    content = BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality)
    return b64encode(content.getvalue()).decode("ascii")


def _safe(text: str) -> str:
    """Return text for HTML: names of files may hold markup and control characters."""
    return escape(printable(text))
