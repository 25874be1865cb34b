"""`dd new`: write files to start from."""

import click

from dd.cli.common import STRICT, examples
from dd.cli.new_method import method
from dd.cli.new_sweep import sweep


@click.group(
    "new",
    context_settings=STRICT,
    subcommand_metavar="WHAT ...",
    epilog=examples("dd new method my-idea", "dd new sweep method=datm"),
    short_help="Write the files of a new method, or a sweep.",
)
def command() -> None:
    """Write files to start from."""


command.add_command(method)
command.add_command(sweep)
