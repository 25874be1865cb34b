"""`dd experts`: create and manage pools of experts."""

import shlex
from typing import TYPE_CHECKING, TypedDict

import click

from dd.cli.common import (
    LENIENT,
    STRICT,
    console,
    emit,
    examples,
    json_option,
    log_to_stderr,
    plain_table,
    print_table,
    remark,
    settings,
)
from dd.cli.index import indexed
from dd.cli.jobs import resolved, role_options
from dd.errors import RunError, UsageError, close_matches
from dd.io import Json, home, write_json
from dd.sizes import readable_size, readable_time

if TYPE_CHECKING:
    from dd.training.pools import ExpertPool, Price


class _PoolRow(TypedDict):
    """A pool: strings for the table, numbers for JSON output."""

    key: str
    data: str
    experts: str
    kind: str
    epochs: str
    network: str
    held_out: str
    size: str
    bytes: int
    took: str
    seconds: float
    settings: dict[str, Json]


class _Experts(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in self.commands and not word.startswith("-"):
            close = [f"dd experts {name}" for name in close_matches(word, self.commands)] or [
                "dd experts, which lists them"
            ]
            raise UsageError(f"dd experts does not take {word!r}; did you mean {' or '.join(close)}?")
        return super().resolve_command(ctx, args)


@click.group(
    "experts",
    cls=_Experts,
    context_settings=STRICT,
    epilog=examples("dd experts", "dd experts make method=datm ipc=10", "dd experts prune 3f2a"),
    short_help="Make, list, verify or delete experts.",
    invoke_without_command=True,
)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the stored pools of experts.

    Runs with the same data, network and experts.* settings share a pool, whatever their method.
    """
    if ctx.invoked_subcommand is not None:
        return
    root = home()
    found = indexed("experts", _pools, lambda: [root / "experts"])
    if as_json:
        emit({"store": str(root), "pools": found})
        return
    if not found:
        remark(f"no experts in {root}; make some with dd experts make method=datm ipc=10")
        return
    table = plain_table("pool", "data", "experts", "kind", "epochs", "network", "held-out %", "size", "took")
    for pool in found:
        trained = (pool["experts"], pool["kind"], pool["epochs"], pool["network"])
        table.add_row(pool["key"], pool["data"], *trained, pool["held_out"], pool["size"], pool["took"])
    print_table(console(), table)
    remark(f"in {root}")


def _pools() -> list[_PoolRow]:
    from dd.runs import Store
    from dd.training.pools import pools

    return [_facts(pool) for pool in pools(Store())]


@command.command(
    "make",
    context_settings=LENIENT,
    epilog=examples(
        "dd experts make method=datm ipc=10",
        "dd experts make method=mtt dataset=cifar10 ipc=10 --dry-run",
        "dd experts make method=mtt dataset=cifar10 ipc=10 on=slurm jobs=20 slurm.gpus=1",
    ),
)
@settings
@click.option("--dry-run", is_flag=True, help="Estimate the cost from a few training steps; make nothing.")
@role_options
@json_option
def make(settings: tuple[str, ...], dry_run: bool, role: str | None, as_json: bool) -> None:
    """Train the experts of a run, with the settings of `dd run`; print the cost first.

    With on= and jobs= they are trained by jobs, as those of `dd run` are.
    """
    from dd.pipeline import locate
    from dd.pipeline.experts import request_experts
    from dd.recipes import parse_overrides

    words, recipe, options = resolved(settings, parse_overrides(settings), elsewhere=not dry_run)
    for line in recipe.notices if role is None else ():  # a job's driver has said it
        remark(line)
    command = shlex.join(["dd", "experts", "make", *settings])
    if options.is_shared and role is None and not dry_run:
        from dd.cluster import drive_experts

        log_to_stderr()
        answer = drive_experts(recipe, options, words, command)
        if as_json:
            emit(answer)
        return
    request = request_experts(recipe)
    if role == "helper":
        log_to_stderr()
        request.help(command)
        return
    cost = request.price()
    remark(_words(cost))
    log_to_stderr()
    answer: dict[str, Json] = {
        "experts": cost.count,
        "missing": cost.missing,
        "seconds": cost.seconds,
        "bytes": cost.bytes,
    }
    if role == "lead":
        folder = locate(recipe, options.out)
        answer["holdout"] = request.make(command, offers=folder.offer)
        write_json(folder.experts, answer)
    elif not dry_run:
        answer["holdout"] = request.make(command)
    if as_json:
        emit(answer)


@command.command("verify", context_settings=STRICT, epilog=examples("dd experts verify", "dd experts verify 3f2a"))
@click.argument("keys", nargs=-1, metavar="[POOL]...")
@json_option
def verify(keys: tuple[str, ...], as_json: bool) -> None:
    """Read every stored expert and compare it with its hash; damaged ones are named, and made again by the next run."""
    from dd.runs import Store
    from dd.training.pools import damages

    store, good, bad = Store(), 0, []
    for pool in _chosen(keys):
        for shard, damage in damages(store, pool):
            good += damage is None
            if damage is not None:
                path = str(store.path("experts", shard.spec))
                bad.append({"pool": pool.key, "member": shard.member, "damage": damage, "path": path})
    if as_json:
        emit({"sound": good, "damaged": bad})
    for one in bad:
        remark(f"expert {one['member'] + 1} of pool {one['pool']}: {one['damage']} ({one['path']})")
    if bad:
        raise RunError(f"{len(bad)} of {good + len(bad)} experts are damaged; the next run makes them again")
    if not as_json:
        click.echo(f"{good} experts, all intact")


@command.command("prune", context_settings=STRICT, epilog=examples("dd experts prune 3f2a", "dd experts prune --all"))
@click.argument("keys", nargs=-1, metavar="[POOL]...")
@click.option("--all", "everything", is_flag=True, help="Every pool.")
@click.option("--dry-run", is_flag=True, help="Show what would be freed; delete nothing.")
@json_option
def prune(keys: tuple[str, ...], everything: bool, dry_run: bool, as_json: bool) -> None:
    """Delete pools by the beginning of their key, as `dd experts` shows it."""
    from dd.runs import Store
    from dd.training.pools import remove

    if bool(keys) == everything:
        raise UsageError("name the pools to delete, as `dd experts` lists them, or give --all")
    store, freed = Store(), 0
    for pool in _chosen(keys):
        gone = pool.bytes if dry_run else remove(store, pool)
        freed += gone
        remark(f"{'would delete' if dry_run else 'deleted'} pool {pool.key}: {len(pool.shards)} experts")
    if as_json:
        emit({"freed": freed, "dry_run": dry_run})
    else:
        click.echo(f"{readable_size(freed)} {'would be' if dry_run else ''} freed".replace("  ", " "))


def _chosen(keys: tuple[str, ...]) -> list["ExpertPool"]:
    """Return the pool that each key prefix identifies uniquely; without prefixes, all pools."""
    from dd.runs import Store
    from dd.training.pools import pools

    there = pools(Store())
    if not keys:
        return there
    chosen: dict[str, ExpertPool] = {}
    for key in keys:
        fitting = [pool for pool in there if pool.key.startswith(key)]
        if len(fitting) != 1:
            known = " ".join(pool.key for pool in there) or "none"
            what = "is not a pool" if not fitting else f"fits {len(fitting)} pools"
            raise UsageError(f"{key!r} {what}; stored: {known}")
        chosen[fitting[0].key] = fitting[0]
    return list(chosen.values())


def _facts(pool: "ExpertPool") -> _PoolRow:
    trained, network = pool.spec["settings"], pool.spec["network"]
    scores = [shard.info["holdout"] for shard in pool.shards if shard.info["holdout"] is not None]
    seconds = sum(shard.seconds for shard in pool.shards)
    return {
        "key": pool.key,
        "data": pool.shards[0].info["data"],
        "experts": str(len(pool.shards)),
        "kind": trained["kind"],
        "epochs": str(trained["epochs"]),
        "network": network["arch"] if network["width"] is None else f"{network['arch']} width {network['width']}",
        "held_out": f"{min(scores):.1f} to {max(scores):.1f}" if scores else "",
        "size": readable_size(pool.bytes),
        "bytes": pool.bytes,
        "took": readable_time(seconds),
        "seconds": seconds,
        "settings": trained,
    }


def _words(cost: "Price") -> str:
    if not cost.missing:
        return f"all {cost.count} experts exist"
    if cost.seconds is None:
        return f"{cost.missing} of {cost.count} experts to read, {readable_size(cost.bytes)} on disk"
    return (
        f"{cost.missing} of {cost.count} experts to train: about {readable_time(cost.seconds)} on this machine "
        f"(from a few uncompiled steps), {readable_size(cost.bytes)} on disk"
    )
