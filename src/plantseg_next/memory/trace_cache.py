"""A cache of traces on disk, shared by all commands.

A trace takes seconds, and a plan needs about a dozen. A trace depends on settings,
classes and kind of device, on PyTorch and timm, and on this code: all of them are part of
the key, so that entries cannot be out of date.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import plantseg_next
from plantseg_next.files import cache_folder, write_atomically
from plantseg_next.json_files import load_json
from plantseg_next.memory.allocation_tracker import Footprint

MOST_KEPT = 300
"""Traces; each takes about 50 KB."""


def cached_trace(about: Mapping[str, Any], find: Callable[[], Footprint]) -> Footprint:
    """Return the trace of a step from the cache, or compute and store it.

    If the folder cannot be read or written, or a file is damaged, the trace is computed.

    Args:
        about: All that the trace depends on besides code and libraries, as plain data.
        find: Computes the trace.
    """
    name = hashlib.sha256(json.dumps([about, _code()], sort_keys=True).encode()).hexdigest()
    name = f"{name}.json.gz"
    with suppress(OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        tree = load_json(gzip.decompress((folder() / name).read_bytes()))
        return Footprint(**tree | {"timeline": tuple(map(tuple, tree["timeline"]))})
    step = find()
    with suppress(OSError):
        packed = gzip.compress(json.dumps(asdict(step)).encode(), 4)
        write_atomically(folder() / name, packed)
        entries = sorted(folder().glob("*.json.gz"), key=lambda p: p.stat().st_mtime)
        for old in entries[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    return step


def folder() -> Path:
    """Return the folder of the cache; see ``files.cache_folder``."""
    return cache_folder() / "traces"


@cache
def _code() -> tuple[str, ...]:
    """Return the digest of this code and the versions of the libraries that it traces."""
    root = Path(plantseg_next.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest(), version("torch"), version("timm")
