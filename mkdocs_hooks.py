"""Show links that leave docs/ as plain paths: the site does not hold their targets."""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s#]+)(?:#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.outside")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:  # noqa: ANN401
    """Return the page with paths in the place of links to files outside ``docs_dir``.

    A target that does not exist is a warning, which fails a strict build.
    """
    folder = posixpath.dirname(page.file.src_uri)
    root = Path(config.config_file_path).parent

    def as_path(link: re.Match[str]) -> str:
        inside = posixpath.normpath(posixpath.join(folder, link[2]))
        if not inside.startswith("../"):
            return link[0]
        target = inside.removeprefix("../")
        if not (root / target).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, link[2])
        text = link[1].strip("`")
        return f"`{target}`" if target.endswith(text) else f"{link[1]} (`{target}`)"

    return LINK.sub(as_path, markdown)
