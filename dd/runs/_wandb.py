"""The only module that uses Weights & Biases; imported only if requested."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import wandb

from dd.errors import in_one_line
from dd.runs.trackers import LogRow, MadeFrom, Results, Subject, in_agent, log, within

_FINISH = 300.0  # seconds for the last uploads at the end of a run; WANDB_FINISH_TIMEOUT overrides it
_MORE = 60.0  # seconds beyond that after which W&B is abandoned
_LINEAGE = 60.0  # seconds to record one input


class WandbRun:
    """A W&B run; WANDB_MODE, WANDB_PROJECT, WANDB_DIR, WANDB_RUN_ID etc. apply."""

    def __init__(self, subject: Subject) -> None:
        """Start a run, or continue the one from before an interruption.

        If W&B cannot be reached, or nobody is logged in, the run is offline; `wandb sync` uploads it.
        """
        name = _run_id(subject)
        try:
            self._run = _begun(subject, name)
        except Exception as error:
            _end_service()
            log.warning("W&B could not start (%s): recording offline; `wandb sync` uploads it", in_one_line(error))
            with _offline():
                self._run = _begun(subject, name)
        locked = {*self._run.config.keys()}  # the sweep's parameters, which W&B does not let us change
        self._run.config.update({key: value for key, value in subject.config.items() if key not in locked})
        self._run.define_metric("it")
        self._run.define_metric("*", step_metric="it")
        seen = self._run.summary.get("it") if self._run.resumed else None
        self._seen = self._last = int(seen) if isinstance(seen, int | float) else -1

    def log(self, row: LogRow) -> None:
        """See `Tracker`; rows that a resumed run has already sent are skipped."""
        it = row["it"]
        assert isinstance(it, int)
        self._last = max(it, self._last)
        if it > self._seen:
            self._run.log({name: value for name, value in row.items() if value is not None})

    def results(self, results: Results) -> None:
        """See `Tracker`."""
        it = max(self._last, 0)
        self._run.log({"it": it, **results.metrics})  # first, and alone: uploading tables and pictures may fail
        table = wandb.Table(columns=list(results.columns), data=[list(row) for row in results.rows])
        pictures = {name: wandb.Image(str(path)) for name, path in results.pictures.items()}
        self._run.log({"it": it, "report": table, **pictures})
        facts = {**results.facts, "made_with": [{"kind": o.kind, "name": o.name} for o in results.origins]}
        self._keep(results.name, "dataset", facts, results)
        if not (self._run.offline or self._run.disabled):  # offline runs cannot record inputs; the facts name them
            for origin in results.origins:
                self._use(origin)

    def close(self, failed: bool) -> None:
        """Finish the run; data not uploaded in time stays on disk for `wandb sync`."""
        try:
            within(self._allowed + _MORE, lambda: self._run.finish(exit_code=1 if failed else 0))
        except Exception:
            _end_service()
            raise

    @property
    def _allowed(self) -> float:
        """Seconds for the last uploads."""
        return getattr(self._run.settings, "finish_timeout", 0.0) or _FINISH

    def _keep(self, name: str, kind: str, facts: Mapping[str, object], results: Results) -> None:
        artifact = wandb.Artifact(name, type=kind, metadata=_jsonable(facts))
        for path in results.files:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact, aliases=list(results.aliases))

    def _use(self, origin: MadeFrom) -> None:
        """Record an input of the run, by its facts only: experts take gigabytes."""
        artifact = wandb.Artifact(origin.name, type=origin.kind, metadata=_jsonable(origin.facts))
        with artifact.new_file("facts.json", encoding="utf-8") as file:
            json.dump(origin.facts, file, indent=1, sort_keys=True)
        within(min(_LINEAGE, self._allowed), lambda: self._run.use_artifact(artifact))


def _begun(subject: Subject, name: str | None) -> "wandb.Run":
    """Start a W&B run."""
    # an agent names project and run itself, through the environment, and wandb warns about other names
    ours = not in_agent()
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT") or "dd-workbench" if ours else None,
        dir=os.environ.get("WANDB_DIR") or str(subject.folder),
        id=name if ours else None,
        resume="allow",
        name=os.environ.get("WANDB_NAME") or subject.name,
        settings=wandb.Settings(**_settings()),
    )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Set WANDB_MODE=offline for the duration of the block."""
    said = os.environ.get("WANDB_MODE")
    os.environ["WANDB_MODE"] = "offline"
    try:
        yield
    finally:
        del os.environ["WANDB_MODE"]
        if said is not None:
            os.environ["WANDB_MODE"] = said


def _settings() -> dict[str, Any]:
    """Return our defaults, without those that environment variables set."""
    # stdout is for results, so W&B must not capture it
    wished = {"console": "off", "finish_timeout": _FINISH}
    there = wandb.Settings.model_fields  # earlier versions have fewer
    said = {name for name in wished if f"WANDB_{name.upper()}" in os.environ}
    return {name: value for name, value in wished.items() if name in there and name not in said}


def _run_id(subject: Subject) -> str | None:
    """Return the id to use: WANDB_RUN_ID, else the stored one, else a new one, which is stored."""
    if named := os.environ.get("WANDB_RUN_ID"):
        return named
    known = None if subject.fresh else subject.known("wandb")
    if known is None:
        known = secrets.token_hex(4)
        subject.remember("wandb", known)
    return known


def _end_service() -> None:
    """Shut down the service, so that Python does not wait for it, or print its errors, at exit."""
    try:
        within(_MORE, lambda: wandb.teardown(1))
    except Exception as error:
        log.debug("W&B ended with %r", error)


def _jsonable(facts: Mapping[str, object]) -> Any:
    return json.loads(json.dumps(facts))
