"""The one file that knows Weights & Biases; imported only when it is asked for."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from dd.errors import RunError
from dd.io import write_text


class WandbRun:
    """One W&B run.  WANDB_MODE, WANDB_PROJECT, WANDB_DIR, WANDB_RUN_ID and their kin are respected; no key is taken."""

    def __init__(self, folder: Path, *, resume: bool, config: dict[str, object], name: str | None) -> None:
        """Start a run, or resume the one that an interrupted run in `folder` had.

        Raises:
            RunError: W&B cannot start (not logged in, no network, ...).
        """
        # an agent names project and run itself, through the environment, and wandb warns about other names
        ours = not os.environ.get("WANDB_SWEEP_ID")
        try:
            import wandb

            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "dd-workbench" if ours else None,
                dir=os.environ.get("WANDB_DIR") or str(folder),
                id=_run_id(folder / "wandb-id", resume) if ours else None,
                resume="allow",
                name=os.environ.get("WANDB_NAME") or name,
                config=config,
                # stdout belongs to the results, so it is left alone unless the user says otherwise
                settings=None if "WANDB_CONSOLE" in os.environ else wandb.Settings(console="off"),
            )
        except Exception as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise RunError(f"W&B could not start ({why}); set WANDB_MODE=offline, or leave out track=wandb") from error
        self._run.define_metric("it")
        self._run.define_metric("*", step_metric="it")

    def log(self, row: Mapping[str, str | int | float | None]) -> None:
        """Send one row; empty cells are left out."""
        self._run.log({name: value for name, value in row.items() if value is not None})

    def close(self, failed: bool) -> None:
        """Finish the run."""
        self._run.finish(exit_code=1 if failed else 0)


def _run_id(file: Path, resume: bool) -> str:
    """The id to use: the environment's; else, when resuming, the one kept in `file`; else a new one, kept there."""
    named = os.environ.get("WANDB_RUN_ID")
    if named:
        return named
    if resume and file.is_file():
        return file.read_text(encoding="utf-8").strip()
    fresh = secrets.token_hex(4)
    write_text(file, fresh + "\n")
    return fresh
