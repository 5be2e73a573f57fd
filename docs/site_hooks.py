"""Hooks of MkDocs: links to files outside docs/ become plain text, because the site does not contain those files."""

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = posixpath.dirname(page.file.src_uri)

    def replace(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        outside = "://" not in link[2] and target.startswith("..")
        return link[1] if outside else link[0]

    return LINK.sub(replace, markdown)
