"""`dd new`: files to begin from."""

import click

from dd.cli.common import STRICT, examples
from dd.cli.new_method import method


@click.group(
    "new",
    context_settings=STRICT,
    epilog=examples("dd new method my-idea", "dd new method my-idea out=~/code/my-idea"),
    short_help="Write the files of a new method.",
)
def command() -> None:
    """Write files to begin from."""


command.add_command(method)
