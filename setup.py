"""README as a package index shows it: its links and pictures are absolute."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
RELATIVE = re.compile(r"(!?)(\[[^]]*\])\((?!https?:|#)([^)]+)\)")


def absolute(markdown: str, repository: str | None) -> str:
    """Return the page with absolute links to files, and to the files' bytes for pictures."""
    if repository is None:
        return markdown

    def link(found: re.Match[str]) -> str:
        picture, text, path = found.groups()
        return f"{picture}{text}({repository}/{'raw' if picture else 'blob'}/HEAD/{path})"

    return RELATIVE.sub(link, markdown)


project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
setup(
    long_description=absolute(
        (ROOT / "README.md").read_text(), project.get("urls", {}).get("Repository")
    ),
    long_description_content_type="text/markdown",
)
