"""The commands about reports: what was found once, in the form that its reader needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiln.commands import complete
from kiln.commands.context import Context
from kiln.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

FORMATS = ("terminal", "junit", "markdown", "annotations", "html")


class _Reports(click.Group):
    """A group whose first command may be left unsaid: what is no command of it, nor a question about it, is a report to show."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the word in where it is left out."""
        said = not args or args[0] in (*self.commands, *ctx.help_option_names, "--json")
        return super().parse_args(ctx, args if said else ["show", *args])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; whoever looks up whose word a file is finds the one that takes it."""
        return super().get_command(ctx, cmd_name) or self.commands["show"]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands, and the reports that may stand in their place."""
        show = self.commands["show"]
        return [*complete.reports(ctx, show.params[0], incomplete), *super().shell_complete(ctx, incomplete)]


@click.group(cls=_Reports)
def report() -> None:
    """Reports: shown in the form that their reader needs, or those of many machines merged into one. `kiln report FILE` is `kiln report show FILE`.

    \b
    Example: kiln report .kiln/reports/sha256-….json --format html --out report.html
             kiln report merge reports/*/*.json --out merged.json
    """


FILES = click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    shell_complete=complete.reports,
)


@report.command("show")
@FILES
@click.option("--format", "form", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file instead of standard output."
)
@click.pass_obj
def report_show(context: Context, files: tuple[Path, ...], form: str, out: Path | None) -> None:
    """Show the report FILE in another form: for a terminal, a CI system, a pull request, a browser.

    The word `show` may be left out. Reads nothing but the files, and ends as the verification did: 0 where the image is right. The form html takes several
    reports and shows the others beside the first.

    \b
    Example: kiln report show .kiln/reports/sha256-….json --format html --out report.html
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


@report.command("merge")
@FILES
@click.option(
    "--matrix",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What `kiln ci matrix --json` printed: every cell of it is in the report, and one that did not report is an error.",
)
@click.option("--image", default="", metavar="NAME", help="Of reports of several images: those of this one.")
@click.option(
    "--digest",
    default="",
    metavar="sha256:…",
    help="Of reports of several digests: this one. The others are named and not counted.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the merged report to this file."
)
@click.pass_obj
def report_merge(
    context: Context, files: tuple[Path, ...], matrix: Path | None, image: str, digest: str, out: Path | None
) -> None:
    """Merge the reports of cells (machines, settings, levels) of one image digest into one report.

    A cell that did not report, whose report cannot be read or speaks of another digest, is an error in it. Of two reports of a cell the newer one
    counts. Ends as a verification: 0 where every cell passed, 61, 62; the report is written whatever it says.

    \b
    Example: kiln report merge reports/*/cpu-serving.json --matrix matrix.json --out merged.json
             kiln ci matrix cpu --level static --level generate --fewest --json > matrix.json    # makes the matrix
    """
    from kiln.ci import read_cells
    from kiln.store import write_whole
    from kiln.verify.merge import chosen, hand_in, merge
    from kiln.verify.report import judge

    cells = read_cells(matrix) if matrix else ()
    handed = [hand_in(file) for file in files]
    name, found = chosen(handed, image, digest)
    if cells and name not in {cell.image for cell in cells}:
        raise UsageError(f"{matrix} has no cell of {name}", fix=f"kiln ci matrix STACK, of the stack that has {name}")
    document = merge(handed, cells, name, found)
    if out:
        write_whole(out, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    context.result(_terminal(document).rstrip("\n"), document)
    judge(document, str(out or "the report above"))


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
