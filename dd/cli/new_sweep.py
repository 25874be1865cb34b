"""`dd new sweep`: the YAML file of a sweep."""

import click

from dd.cli.common import LENIENT, examples, remark, settings


@click.command(
    "sweep",
    context_settings=LENIENT,
    epilog=examples(
        "dd new sweep method=datm",
        "dd new sweep method=dm dataset=cifar10 ipc=10 over=lr_img,batch_real search=grid to=dm.yaml",
    ),
    short_help="Write a sweep over a method's settings.",
)
@settings
def sweep(settings: tuple[str, ...]) -> None:
    """Write the YAML file of a sweep over the settings of a method, for `dd sweep` and for W&B's agents.

    Keys: settings for all trials, as for `dd run`; over=KEY,KEY, the swept settings; search=bayes|random|grid;
    trials=N; to=FILE, the file to write (default sweep-METHOD.yaml).
    """
    from pathlib import Path

    from dd.cli.sweep import whole_number
    from dd.errors import UsageError
    from dd.io import user_path, writable, write_text
    from dd.recipes import parse_overrides
    from dd.sweeps import draft

    words = parse_overrides(settings)
    over, search = words.pop("over", ""), str(words.pop("search", "bayes"))
    trials, to = whole_number("trials", words.pop("trials", 30)), words.pop("to", None)
    named = over if isinstance(over, list) else [key.strip() for key in str(over).split(",") if key.strip()]
    text = draft(words, over=[str(key) for key in named], search=search, trials=trials)
    name = f"sweep-{Path(str(words['method'])).stem}.yaml" if to is None else str(to)
    path = user_path(name, "to", absolute=False)
    if path.exists():
        raise UsageError(f"{path} already exists: choose another file with to=FILE")
    writable(path.parent, "choose another file with to=FILE")
    write_text(path, text)
    click.echo(str(path))
    remark(f"next: dd sweep {path}, or with an account: wandb sweep {path}")
