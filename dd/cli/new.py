"""`dd new`: files to begin from."""

import click

from dd.cli.common import STRICT
from dd.cli.new_method import method


@click.group("new", context_settings=STRICT, short_help="Write the files to begin a method with.")
def command() -> None:
    """Write files to begin from."""


command.add_command(method)
