"""The commands. They know all stages and print results; no stage knows them. What they raise is for ``kiln.cli``."""

from __future__ import annotations

from pathlib import Path

import click

from kiln import __version__
from kiln.commands import cache, host, images, inputs, reports, verify
from kiln.commands.context import Context
from kiln.console import Console


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kiln")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="The project folder (default: the one around the current folder, or KILN_ROOT).",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Where Kiln keeps its files (default: .kiln in the project, or KILN_STATE).",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress; results and errors only.")
@click.option("--json", "as_json", is_flag=True, help="Results as JSON on standard output.")
@click.pass_context
def cli(click_context: click.Context, root: Path | None, state: Path | None, quiet: bool, as_json: bool) -> None:
    """Build and verify reproducible container images that serve DeepSeek V4 with vLLM.

    \b
    Example: kiln image cpu        fetch, build and verify the images of the stack `cpu`
             kiln lock cpu --check is the lock current?
    """
    click_context.obj = Context(root, state, Console(quiet=quiet), as_json)


for command in (
    *inputs.COMMANDS,
    *images.COMMANDS,
    *verify.COMMANDS,
    *reports.COMMANDS,
    *cache.COMMANDS,
    *host.COMMANDS,
):
    cli.add_command(command)
