"""Pages of the site that are not files of this folder: those of the root, and those made from code.

A hook of mkdocs; see 'hooks' in mkdocs.yml.
"""

import inspect
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import cocoseg
from cocoseg.cli import cli
from cocoseg.config import Resolved, describe
from cocoseg.settings import Settings
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
SHARED = {
    "index.md": "README.md",
    **{name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")},
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
}
"""Page of the site → file of the repository that it shows."""


def on_startup(**_: Any) -> None:
    """Make .venv/reference/cocoseg, the package alone: mkdocstrings reads all below its folder.

    It has to be there before mkdocstrings reads its settings: it drops paths that are not.
    """
    reference = ROOT / ".venv" / "reference" / "cocoseg"
    shutil.rmtree(reference, ignore_errors=True)
    reference.mkdir(parents=True)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    folders = {name.split(".")[1] for name in packages if "." in name}
    for name in sorted({*folders, *(file.name for file in ROOT.glob("*.py"))}):
        (reference / name).symlink_to(ROOT / name)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of docs/."""
    for uri, name in SHARED.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    made = {"cli": command_line(), "settings": settings(), "python": python()}
    for name, content in made.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links of the repository links of the site."""
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown
    if uri.startswith("benchmarks/"):
        return markdown.replace("](../docs/", "](../")
    shown = markdown.replace("](docs/", "](") if uri in SHARED else markdown.replace("](../", "](")
    return shown.replace("](README.md", "](index.md")


def command_line() -> str:
    """Return ``--help`` of every command."""
    lines = ["# Command line", ""]
    for name, command, context in commands(
        cli, click.Context(cli, info_name="cocoseg", **cli.context_settings)
    ):
        lines += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def commands(
    command: click.Command, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yield a command and those below it: its full name, itself, its context."""
    context.max_content_width = 100
    yield context.command_path, command, context
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, click.Context(below, parent=context, info_name=name))


def settings() -> str:
    """Return the description of every setting."""
    lines = ["# Settings", "", "Where they are written: [configuration files](../config.md).", ""]
    defaults = Settings()
    origins = {
        f"{section}.{key}": "default"
        for section in Settings.model_fields
        for key in type(getattr(defaults, section)).model_fields
    }
    resolved = Resolved(defaults, origins)
    for section in Settings.model_fields:
        lines += [f"## {section}", ""]
        for one in describe(resolved, section):
            fixed = " Fixed once a run has begun." if one.fixed_once_begun else ""
            lines += [
                f"### {one.key}",
                "",
                f"{one.description}{fixed}",
                "",
                f"- accepts: {one.allowed}",
                f"- default: `{one.default!r}`",
                "",
            ]
    return "\n".join(lines)


def python() -> str:
    """Return a page that mkdocstrings fills with the public names of ``import cocoseg``."""
    lines = ["# Python", "", "How these are used together: [From Python](../python.md).", ""]
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Settings": []}
    for name in cocoseg.__all__:
        value = getattr(cocoseg, name)
        kind = "Settings" if name.endswith("Config") else "Classes"
        kinds["Functions" if inspect.isfunction(value) else kind].append(
            f"::: {value.__module__}.{value.__qualname__}\n    options: {{heading: cocoseg.{name}}}"
        )
    for kind, directives in kinds.items():
        lines += [f"## {kind}", ""]
        for directive in directives:
            lines += [directive, ""]
    return "\n".join(lines)
