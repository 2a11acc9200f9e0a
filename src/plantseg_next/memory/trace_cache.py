"""What steps were found to take, kept from one command to the next.

A step is traced in seconds, and a plan asks for a dozen of them. What a trace finds
depends on settings, classes and kind of device, on PyTorch and timm, and on this code: all
of it is in the name under which it is kept, so that nothing kept can be out of date.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import plantseg_next
from plantseg_next.files import write_atomically
from plantseg_next.memory.allocation_tracker import Footprint

MOST_KEPT = 300
"""Steps; each takes some 50 KB."""


def cached_trace(about: Mapping[str, Any], find: Callable[[], Footprint]) -> Footprint:
    """Return what a step takes: as kept if it is, else found and kept.

    A folder that cannot be read or written, or a damaged file, costs time and nothing
    else.

    Args:
        about: All that the step depends on besides code and libraries, as plain data.
        find: Finds it, for want of a kept one.
    """
    name = hashlib.sha256(json.dumps([about, _code()], sort_keys=True).encode()).hexdigest()
    path = folder() / f"{name}.json.gz"
    with suppress(OSError, EOFError, ValueError, KeyError, TypeError):
        tree = json.loads(gzip.decompress(path.read_bytes()))
        return Footprint(**tree | {"timeline": tuple(map(tuple, tree["timeline"]))})
    found = find()
    with suppress(OSError):
        packed = gzip.compress(json.dumps(asdict(found)).encode(), 4)
        write_atomically(path, packed)
        kept = sorted(path.parent.glob("*.json.gz"), key=lambda p: p.stat().st_mtime)
        for old in kept[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    return found


def folder() -> Path:
    """Return where they are kept: under ``XDG_CACHE_HOME``, or ``.cache`` at home."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "plantseg-next" / "traces"


@cache
def _code() -> tuple[str, ...]:
    """Return what tells this code and the libraries that it traces from others."""
    root = Path(plantseg_next.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest(), version("torch"), version("timm")
