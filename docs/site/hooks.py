"""Adds to docs/*.md what the site shows of the rest of the repository.

README and its neighbours, the notebook with its outputs, and the help of every command
become pages. Links are written for the repository; here they are turned to these pages.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from elmojax.cli import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "docs" / "quickstart.ipynb"
NEIGHBOURS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]+)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that no file of docs/ holds as it stands."""
    for name in NEIGHBOURS:
        path = str(REPOSITORY / name)
        files.append(File.generated(config, name, abs_src_path=path))
    notebook, resources = MarkdownExporter().from_filename(str(NOTEBOOK))
    made = {"quickstart.md": notebook, "commands.md": _commands()}
    for name, content in {**made, **resources["outputs"]}.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """`markdown`, whose links to files of the repository lead to pages of the site.

    A file that the site does not hold keeps its name, without a link; one that is not
    there at all is left to the strict build, which refuses it.
    """
    source = Path(page.file.abs_src_path or NOTEBOOK)
    pages = {Path(f.abs_src_path): f.src_uri for f in files if f.abs_src_path}
    pages[NOTEBOOK] = "quickstart.md"

    def turned(link: re.Match[str]) -> str:
        label, target, anchor = link.groups()
        path = (source.parent / target).resolve()
        if path in pages:
            return f"[{label}]({pages[path]}{anchor or ''})"
        return label if path.exists() else link[0]

    return LINK.sub(turned, markdown)


def _commands() -> str:
    """What `elmojax COMMAND --help` prints, of every command."""
    parts = ["# Command line\n"]
    for name, command in COMMANDS.items():
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            command(["--help"])
        parts.append(f"## elmojax {name}\n\n```text\n{shown.getvalue()}```\n")
    return "\n".join(parts)
