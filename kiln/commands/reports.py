"""The command about reports: what was found once, in the form that its reader needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kiln.commands import complete
from kiln.commands.context import Context
from kiln.errors import UsageError

FORMATS = ("terminal", "junit", "markdown", "annotations", "html")


@click.command()
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    shell_complete=complete.reports,
)
@click.option("--format", "form", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file instead of standard output."
)
@click.pass_obj
def report(context: Context, files: tuple[Path, ...], form: str, out: Path | None) -> None:
    """Show the report FILE in another form: for a terminal, a CI system, a pull request, a browser.

    Reads nothing but the files, and ends as the verification did: 0 where the image is right. The form html takes several
    reports and shows the others beside the first.

    \b
    Example: kiln report .kiln/reports/sha256-….json --format html --out report.html
             kiln report .kiln/reports/sha256-….json --format markdown >> "$GITHUB_STEP_SUMMARY"
    """
    from kiln.verify.render.shape import read_report
    from kiln.verify.report import judge

    if len(files) > 1 and form != "html":
        raise UsageError(f"{len(files)} reports, and the form {form} shows one", fix="one at a time, or --format html")
    documents = [read_report(file) for file in files]
    text = _forms(context)[form](documents)
    if context.as_json:
        context.result("", documents)
    elif out:
        out.write_text(text, encoding="utf-8", newline="\n")
        context.result(str(out), None)
    else:
        # The forms hold signs that a terminal's own encoding may not have; they are UTF-8 wherever they go.
        click.echo(text.encode(), nl=False)
    for file, document in zip(files, documents, strict=True):
        judge(document, str(file))


def _forms(context: Context) -> dict[str, Callable[[list[dict[str, Any]]], str]]:
    from kiln.verify.render.annotations import annotations
    from kiln.verify.render.html import html
    from kiln.verify.render.junit import junit
    from kiln.verify.render.markdown import markdown

    def annotated(documents: list[dict[str, Any]]) -> str:
        path = f"pins/{documents[0]['stack']}.toml"
        try:
            pins = (context.workspace.root / path).read_text(encoding="utf-8")
        except OSError:
            pins = ""  # the report of another project: all that is known is the file's name
        return "".join(f"{line}\n" for line in annotations(documents[0], pins, path))

    return {
        "terminal": lambda documents: _terminal(documents[0]),
        "junit": lambda documents: junit(documents[0]),
        "markdown": lambda documents: markdown(documents[0]),
        "annotations": annotated,
        "html": lambda documents: html(documents[0], others=documents[1:]),
    }


def _terminal(document: dict[str, Any]) -> str:
    from kiln.verify.render.common import clean, verdict
    from kiln.verify.report import table

    found = verdict(document)
    subject = f"{document['subject']['image']}@{document['subject']['manifest_digest']}"
    return f"{clean(subject)}\n\n{table(document)}\n\n{found.word}: {found.sentence}\n"


COMMANDS = (report,)
