"""What settings were called before, so that an error can name what they are called now."""

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
