"""The card of a set on the Hub: metadata for search, and what users of the set must know."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dd.errors import printable
from dd.evaluation.report import SCORES, Report, Score
from dd.licences import NOT_STATED
from dd.sets import DistilledSet
from dd.sets.origin import imported
from dd.sizes import readable_size

PREVIEW = "preview.png"
PARQUET = Path("data") / "train-00000-of-00001.parquet"

_ARMS = {
    "accuracy": "this set",
    "control": "random real images, as many",
    "decoded": "decoded mosaics of random real images",
    "start": "the set at iteration 0",
    "full": "all real images",
}
_HUB_LICENCES = ("mit", "apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0")  # words of the Hub
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class CardFacts:
    """Facts for a card that are not in the set itself.

    Attributes:
        name: name of the set, for the title.
        licence: licence of the set, as stated by its author.
        data_licence: licence of the real data.
        paper: paper of the method.
        report: report of its evaluation; None if it was not scored.
        lost: the parts of the set that the parquet file lacks, one line each; None if there is no such file.
        place: the argument for `dd eval` and `dd pull`.
    """

    name: str
    place: str
    licence: str = NOT_STATED
    data_licence: str = NOT_STATED
    paper: str = ""
    report: Report | None = None
    lost: tuple[str, ...] | None = None
    has_preview: bool = False


def card(distilled: DistilledSet, facts: CardFacts) -> str:
    """Return the text of README.md: YAML metadata, then Markdown."""
    parts = [f"---\n{_metadata(distilled, facts)}---", f"# {_plain(facts.name)}", _summary(distilled)]
    if facts.has_preview:
        parts.append(f"![some of its images]({PREVIEW})")
    parts += ["## How it was made", *_made(distilled, facts), "## What it scores", *_scores(facts.report)]
    parts += ["## How to use it", *_use(distilled, facts), "## What it may leak", "\n".join(_leaks(distilled))]
    parts += ["## Licence", f"Of this set: {_plain(facts.licence)}.  Of the real data: {_plain(facts.data_licence)}."]
    return "\n\n".join(parts) + "\n"


def _metadata(distilled: DistilledSet, facts: CardFacts) -> str:
    from huggingface_hub import DatasetCardData

    ipc, method = distilled.ipc, str(distilled.provenance.get("method", ""))
    tags = ["dataset-distillation", "dd", *([f"ipc-{ipc}"] if ipc else []), *([method] if method else [])]
    size = next((name for most, name in _SIZES if distilled.n < most), "n>1M")
    stated, known = facts.licence.lower(), facts.licence.lower() in _HUB_LICENCES
    is_other = not known and facts.licence != NOT_STATED
    more: dict[str, Any] = {"license_name": facts.licence} if is_other else {}
    if facts.lost is not None:
        more["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": PARQUET.as_posix()}]}]
    data = DatasetCardData(
        license=stated if known else "other" if is_other else "unknown",
        pretty_name=_plain(facts.name),
        task_categories=["image-classification"],
        size_categories=[size],
        source_datasets=[f"extended|other-{_plain(Path(distilled.source).name)}"],
        tags=[_plain(tag) for tag in tags],
        **more,
    )
    return data.to_yaml() + "\n"


def _summary(distilled: DistilledSet) -> str:
    size = "x".join(map(str, distilled.images.shape[1:]))
    kind = "images" if distilled.image_kind == "pixels" else distilled.image_kind
    images = f"{distilled.n:,} {kind}" + (f" of {size}" if size else "")
    per_class = f", {distilled.ipc} for each of" if distilled.ipc else " of"
    return (
        f"A distilled data set: {images}{per_class} {len(distilled.classes):,} classes, in place of "
        f"`{_plain(Path(distilled.source).name)}`.  Labels: {_labels(distilled)}.  Values: "
        f"{'bytes of pixels' if distilled.images.dtype == torch.uint8 else distilled.space['kind']}.  Size: "
        f"{readable_size(distilled.bytes()['total'])}."
    )


def _labels(distilled: DistilledSet) -> str:
    if distilled.views is None:
        return distilled.label_kind
    return f"a teacher's, for the views of {distilled.views.spec.epochs} epochs"


def _made(distilled: DistilledSet, facts: CardFacts) -> Iterator[str]:
    made, origin = distilled.provenance, imported(distilled.provenance)
    of = "" if origin is None else ", ".join(file.name for file in origin.files)
    rows = {
        "made by": f"others; imported from {of} (format {origin.format})" if origin else "",
        "method": made.get("method"),
        "paper": facts.paper,
        "made with": f"dd {made['version']}" if made.get("version") else "",
        "command": f"`{made['command']}`" if made.get("command") else "",
        "seed": made.get("seed"),
        "iterations": made.get("iterations"),
        "recipe": made.get("recipe"),
        "hash of the set": distilled.digest(),
    }
    yield _table(["", ""], [[key, str(value)] for key, value in rows.items() if value not in (None, "")])


def _scores(report: Report | None) -> Iterator[str]:
    if report is None:
        yield "It was not scored when this was written."
        return
    rows = [(words, getattr(report, arm)) for arm, words in _ARMS.items() if arm in SCORES]
    body = [[words, _band(score), str(score.n)] for words, score in rows if score is not None]
    yield _table(["students trained on", "test accuracy %", "students"], body)
    protocol, student = report.protocol, report.student
    length = f"{protocol['epochs']} epochs" if protocol.get("steps") is None else f"{protocol['steps']} steps"
    seed = report.provenance.get("seed", 0)
    yield (
        f"Protocol `{protocol['protocol']}` (fingerprint `{report.fingerprint}`): {length} at batch "
        f"{protocol['batch']}, network `{student['arch']}`; seeds derived from {seed}; {report.device}; torch "
        f"{report.versions.get('torch', 'unknown')}.  Mean ± standard deviation over students; each of those on random "
        "real images has a draw of its own."
    )
    if report.control is None:
        yield f"No control: {_plain(report.missing.get('control', 'not scored'))}."
    for note in report.notes:
        yield f"- {_plain(note)}"


def _use(distilled: DistilledSet, facts: CardFacts) -> Iterator[str]:
    yield (
        "```\n"
        "pip install dd-workbench\n"
        f"dd eval {facts.place}      # fresh students on it, and on random real images\n"
        + (f"dd pull {facts.place} out=FOLDER\n" if facts.place != "FOLDER" else "")
        + "```"
    )
    yield (
        "`set.safetensors` is exact: `safetensors.torch.load_file` gives its tensors `images` and `labels`, and its "
        "metadata say what they mean."
    )
    if facts.lost is not None:
        lost = "".join(f"\n- {_plain(line)}" for line in facts.lost)
        yield f"`{PARQUET.as_posix()}` is for looking at" + (f"; it lacks:{lost}" if lost else ", and is as exact.")


def _leaks(distilled: DistilledSet) -> Iterator[str]:
    source = f"`{_plain(Path(distilled.source).name)}`"
    if distilled.image_kind in ("indices", "schedule"):
        yield f"- It says which images of {source} it is made of."
    elif distilled.images.dtype == torch.uint8:
        yield f"- Its images are bytes of pixels, which may be those of real images of {source}, whole or in part."
    else:
        yield (
            f"- Its images were computed from real images of {source} and may show what is in them; images that began "
            "as real ones may still look like them."
        )
    if distilled.label_kind == "hard":
        yield "- Its labels are classes, and tell no more."
    elif distilled.views is not None or distilled.label_kind in ("logits", "probabilities"):
        yield (
            f"- Its labels are soft: those of a teacher carry knowledge of all images that it was trained on, and not "
            f"of these {distilled.n:,} alone.  Compare with real images under the same labels."
        )
    yield "- Nothing here was made with differential privacy, and nothing was tested for membership inference."


def _band(score: Score) -> str:
    return f"{score.mean:.2f}" + ("" if score.std is None else f" ± {score.std:.2f}")


def _table(head: list[str], body: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *([_plain(cell).replace("|", "\\|") for cell in row] for row in body)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _plain(text: Any) -> str:
    """Return a text as a single line, without control characters, and with "<" escaped."""
    return printable(str(text), keep="").replace("<", "&lt;")
