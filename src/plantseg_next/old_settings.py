"""Errors for names that are no setting: an old one is answered with the present one."""

import difflib
from collections.abc import Sequence

from plantseg_next.errors import UsageError

RENAMED = {
    "data.labelled_share": "data.labeled_fraction",
    "loss.hardest_pixels": "loss.ohem_ce",
    "unlabelled.light": "semi.strong_aug",
    "unlabelled.weight": "semi.consistency_weight",
    "unlabelled.starts": "semi.warmup_fraction",
    "unlabelled.ramp": "semi.rampup_fraction",
    "unlabelled.decay": "semi.ema_decay",
    "unlabelled.gate": "semi.confidence",
    "unlabelled.dynamic": "semi.adaptive_threshold",
    "unlabelled.method": "semi.method",
    "unlabelled.ratio": "semi.ratio",
    "unlabelled.strong_views": "semi.strong_views",
    "unlabelled.threshold": "semi.threshold",
    "unlabelled.cut_mix": "semi.cut_mix",
    "unlabelled": "semi",
    "names.share": "image_labels.fraction",
    "names.seeds": "image_labels.cam_seeds",
    "names": "image_labels",
    "training.rate": "training.lr",
    "training.after_collapse": "training.on_collapse",
    "training.validation_pictures": "training.validation_images",
    "memory.recomputed": "memory.activation_checkpointing",
    "memory.loss_rows": "memory.loss_chunk_rows",
    "memory.teacher": "memory.ema_offload",
    "memory.optimiser": "memory.optimizer",
    "memory.frozen": "memory.freeze_encoder",
}
"""Names of settings before 2026-11-27, with their present names."""
REMOVED = frozenset(
    {
        "data.max_tiles", "data.background_share", "data.unreadable_share",
        "model.drop_path", "loss.hardest_share", "loss.dice", "loss.boundary",
        "unlabelled.floor", "unlabelled.passes", "unlabelled.divide_by",
        "unlabelled.dice", "unlabelled.copy_paste", "names.backgrounds",
        "names.seeds_by", "names.smoothing", "names.fades", "names.high", "names.low",
        "names.denies", "names.least_precision", "training.warmup_share",
        "training.clip", "memory.channels_last", "memory.clears_cache",
    }
)  # fmt: skip
"""Settings removed on 2026-11-27; each is fixed at its earlier default."""


def unknown_setting(name: str, names: Sequence[str], origin: str) -> UsageError:
    """Return the error for a name that is not, or no longer, the name of a setting.

    Args:
        name: As it was given.
        names: Of all settings.
        origin: Where it was given, for the message.
    """
    lists_all = "`plantseg-next train --settings` lists all"
    if name in RENAMED:
        return UsageError(
            f"{origin}: `{name}` is an old name.",
            needed=f"its new name, `{RENAMED[name]}`",
            fix=f"write {RENAMED[name]}; {lists_all}",
        )
    if name in REMOVED:
        return UsageError(
            f"{origin}: the setting `{name}` was removed.",
            needed="existing settings; this one is now fixed at its earlier default",
            fix=f"leave it out; {lists_all}",
        )
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    by_ending = [n for n in names if n.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    return UsageError(
        f"{origin}: there is no setting `{name}`.",
        needed=f"an existing setting; the nearest is `{(by_ending or near)[0]}`",
        fix=f"{lists_all} with their defaults",
    )
