"""`dd completion`: shell completion for `dd`.

The printed script calls `dd completion SHELL --line LINE` to get the candidates for the last word of a line.
"""

import logging
import shlex
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import click

from dd.cli.common import STRICT, examples
from dd.cli.index import indexed, plug_ins
from dd.errors import UsageError
from dd.io import user_path

_SCRIPTS = {
    # bash replaces only the part after the last of its word-break characters
    "bash": """_dd() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n'
    local word="${line##* }"
    local cut="${word%"${word##*[=:]}"}"
    COMPREPLY=($(command dd completion bash --line "$line" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/:] ]] && compopt -o nospace
}
complete -o default -F _dd dd dd-workbench
""",
    "zsh": """_dd() {
    local -a found
    found=("${(@f)$(command dd completion zsh --line "${BUFFER[1,CURSOR]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then compadd -S '' -- "${found[@]}"; else _files; fi
}
compdef _dd dd dd-workbench
""",
    "fish": """for program in dd dd-workbench
    complete -c $program -a '(command dd completion fish --line (commandline -cp | string collect) 2>/dev/null)'
end
""",
}
_INSTALLED = (
    "dd completion bash >> ~/.bashrc",
    "dd completion zsh >> ~/.zshrc",
    "dd completion fish > ~/.config/fish/completions/dd.fish",
)
_OF_SETS = ("eval", "compare", "export", "push", "pull", "sets")
_OF_RUNS = ("diff", "doctor")
_TRUTH = ("true", "false")
_IMPORTED: dict[str, tuple[str, ...]] = {  # facts that files may omit, for `dd import` and `dd pull`
    "dataset": (),
    "value_space": ("pixels", "bytes", "normalised", "zca", "zca-normalised", "network"),
    "class_order": ("data", "sorted"),
    "labels": ("hard", "probabilities", "logits", "centred", "blocks", "cycle"),
    "entry": ("all",),
    "preprocess": ("standard", "zca", "none"),
    "uneven": _TRUTH,
    "format": (),
    "protocol": (),
    "augment": ("none",),
    "lr": (),
    "factor": (),
    "size": (),
    "device": ("cpu", "cuda", "mps"),
    "ipc": (),
    "label": (),
    "rows": (),
    "teachers": (),
}
# keys of verbs without the settings of a run, and the values of those that have few
_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "import": {**_IMPORTED, "force": _TRUTH, "out": ()},
    "pull": {**_IMPORTED, "force": _TRUTH, "trust": _TRUTH, "from": (), "out": ()},
    "push": {"licence": (), "private": _TRUTH, "force": _TRUTH, "dataset": ()},
    "export": {
        "form": ("folder", "parquet", "pt", "npz", "safetensors"),
        "out": (),
        "tiles": ("decoded", "kept"),
        "force": _TRUTH,
        "dataset": (),
    },
    "new method": {"out": ()},
    "report": {"out": (), "dataset": ()},
    "sets": {},
}
# further keys of some verbs, and the values of those that have few
_OWN: dict[str, dict[str, list[str]]] = {
    "plan": {"memory": [], "hours": []},
    "sweep": {"trials": [], "workers": []},
    "compare": {"labels": ["own", "hard", "soft", "views"], "allow_mismatch": ["true", "false"]},
    "new sweep": {"over": [], "search": ["bayes", "grid", "random"], "trials": [], "to": []},
}
_KEYED = ("run", "plan", "show", "eval", "sweep", "experts make", "new sweep")  # verbs with settings


@click.command(
    "completion",
    context_settings=STRICT,
    epilog=examples(*_INSTALLED),
    short_help="Print a shell script that completes keys and names.",
)
@click.argument("shell", type=click.Choice(list(_SCRIPTS)))
@click.option("--line", hidden=True, help="Print the possible completions of this line.")
def command(shell: str, line: str | None) -> None:
    """Print the script that makes SHELL complete verbs, keys, methods, datasets, recipes, protocols and set files."""
    if line is None:
        click.echo(_SCRIPTS[shell], nl=False)
        return
    for word in completed(line):
        click.echo(word)


def completed(line: str) -> list[str]:
    """Return the candidates for the last word of a line."""
    words = _split(line)[1:]
    if not words:
        return []
    *before, last = words
    return sorted(word for word in _candidates(before, last) if word.startswith(last) and word.isprintable())


def _split(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError:  # an open quotation mark
        words = line.split()
    return words if line[-1:].strip() else [*words, ""]


def _candidates(before: list[str], last: str) -> Iterable[str]:
    from dd.cli.main import VERBS

    if not before:
        return VERBS
    verb = " ".join(before[:2]) if before[0] in ("experts", "data", "new") and len(before) > 1 else before[0]
    known = indexed("completion", _known, plug_ins)
    if verb in ("methods", "recipes"):
        return known["methods"]
    if verb == "protocols":
        return known["keys"]["eval.protocol"]
    if verb == "data check":
        return known["datasets"]
    if verb in (*_OF_SETS, *_OF_RUNS):
        return _for_a_set(verb, before, last)
    if verb == "import":
        files = [one for suffix in (".pt", ".npz", ".npy") for one in _files(last, suffix)]
        return [*dict.fromkeys(files), *_keys(verb, last)]
    if verb == "new method":
        return _keys(verb, last) if len(before) > 2 else ()
    if verb == "sweep" and len(before) == 1:
        return _files(last, ".yaml")
    if verb in _KEYED:
        return _settings({**known, "keys": known["keys"] | _OWN.get(verb, {})}, before, last)
    return {
        "new": ("method", "sweep"),
        "experts": ("make", "verify", "prune"),
        "data": ("check",),
        "completion": tuple(_SCRIPTS),
    }.get(verb, ())


def _for_a_set(verb: str, before: list[str], last: str) -> Iterable[str]:
    """What follows a verb that takes a set: the set, then keys; or one that takes runs."""
    if verb in _OF_RUNS:
        return _runs(last)
    if len(before) == 1:
        return _released() if verb in ("sets", "pull") else [*_sets(last), *_released()]
    if verb == "eval":
        known = indexed("completion", _known, plug_ins)
        return _settings({**known, "keys": known["keys"] | known["tasks"]}, before, last)
    if verb == "report":
        return _keys(verb, last) if "=" in last else [*_sets(last), *_files(last, ".json"), *_keys(verb, last)]
    if verb == "compare":
        known = indexed("completion", _known, plug_ins)
        keys = _settings({**known, "keys": known["keys"] | _OWN[verb]}, before, last)
        return keys if "=" in last else [*_sets(last), *keys]
    return _keys(verb, last)


def _keys(verb: str, last: str) -> Iterable[str]:
    """Return the keys of a verb followed by `=`, or the values of the key being typed."""
    key, equals, _ = last.partition("=")
    keys = _KEYS[verb]
    if not equals:
        return [f"{name}=" for name in keys]
    known = indexed("completion", _known, plug_ins)
    named = {"dataset": known["datasets"], "protocol": known["keys"]["eval.protocol"], "format": known["formats"]}
    return [f"{key}={one}" for one in keys.get(key) or (named.get(key, ()) if key in keys else ())]


def _settings(known: dict[str, Any], before: list[str], last: str) -> Iterable[str]:
    """Return keys followed by `=`, or the values of the key being typed."""
    given = dict(word.split("=", 1) for word in before if "=" in word)
    own = known["methods"].get(given.get("method", ""), {"keys": {}, "cells": [], "presets": []})
    keys = known["keys"] | own["keys"]
    key, equals, value = last.partition("=")
    if not equals:
        return [f"{name}=" for name in keys if name not in given]
    values: Iterable[str] = {"like": own["cells"], "preset": own["presets"], "method": known["methods"]}.get(
        key, keys.get(key) or ()
    )
    if key == "init":
        values = [*_sets(value), *_released()]
    if key == "recipe":
        values = [*_files(value, ".toml"), *_runs(value)]
    return [f"{key}={one}" for one in values]


def _released() -> list[str]:
    """Return the names of released sets, ignoring broken indexes."""
    from dd.released.index import known_sets

    log = logging.getLogger("dd.released")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        return list(known_sets())
    finally:
        log.setLevel(before)


def _sets(begun: str) -> list[str]:
    return [*_files(begun, ".safetensors"), *_runs(begun)]


def _runs(begun: str) -> list[str]:
    """Return the folders of existing runs."""
    from dd.runs import runs_root

    return [str(path.parent) for path in runs_root().glob("*/*/*/*/recipe.toml")]


def _files(begun: str, suffix: str) -> list[str]:
    """Return folders, and files with this suffix, that match the path typed so far."""
    head = begun.rpartition("/")[0] + "/" if "/" in begun else ""
    try:
        there = sorted(user_path(head or ".").iterdir())
    except (OSError, UsageError):
        return []
    folders = [f"{head}{path.name}/" for path in there if path.is_dir() and not path.name.startswith(".")]
    return folders + [f"{head}{path.name}" for path in there if path.name.endswith(suffix)]


def _known() -> dict[str, Any]:
    """Collect all names that completion offers, for the index."""
    from dd.data import DataSettings, list_sources
    from dd.engine import registry
    from dd.evaluation.downstream import TASKS
    from dd.evaluation.protocols import PROTOCOLS, Protocol
    from dd.exchange.readers import readers
    from dd.networks import NetworkSpec
    from dd.networks.names import ARCHITECTURES, NETWORKS
    from dd.recipes import recipe_file
    from dd.recipes.checks import instance
    from dd.recipes.layers import BARE
    from dd.recipes.schema import leaves
    from dd.runs.trackers import tracker_names

    datasets = [source.name.removesuffix("PATH") for source in list_sources()]
    keys = {key: _choices(leaf.annotation) for key, leaf in BARE.items()}
    for prefix, part in (("data.", DataSettings()), ("student.", NetworkSpec()), ("eval.", Protocol())):
        keys |= {key: _choices(leaf.annotation) for key, leaf in leaves(part, prefix).items()}
    keys |= {
        "track": list(tracker_names()),
        "dataset": datasets,
        "eval.protocol": list(PROTOCOLS),
        "device": ["auto", "cpu", "cuda", "mps"],
        "student.arch": [*ARCHITECTURES, *NETWORKS, "timm:", "torchvision:"],
    }
    methods: dict[str, Any] = {}
    for entry in registry.list_methods():
        if entry.error is not None:
            continue
        own = leaves(instance(registry.get(entry.name), entry.name))
        file = recipe_file(entry.name)
        methods[entry.name] = {
            "keys": {key: _choices(leaf.annotation) for key, leaf in own.items()},
            "cells": [cell.name for cell in file.cells.values() if cell.preset is None],
            "presets": sorted(file.preset_names()),
        }
    tasks: dict[str, list[str]] = {"task": list(TASKS)}
    for name, task in TASKS.items():
        tasks |= {key: _choices(leaf.annotation) for key, leaf in leaves(task(), f"{name}.").items()}
    formats = sorted({name for reader in readers() for name in reader.formats})
    return {"datasets": datasets, "formats": formats, "keys": keys, "methods": methods, "tasks": tasks}


def _choices(annotation: Any) -> list[str]:
    """Return the values of an annotation that allows only a few."""
    if annotation is bool:
        return list(_TRUTH)
    if get_origin(annotation) is Literal:
        return [str(one) for one in get_args(annotation)]
    return [one for part in get_args(annotation) if not isinstance(part, str) for one in _choices(part)]
