"""The benchmark: what distillation adds, for every method, size and kind of labels, beside all that costs less.

    python experiments/benchmark.py fashion-mini
    DD_DATA=… python experiments/benchmark.py cifar10 --ipc 10 --methods dm,datm,random

Every cell is three runs with seeds of their own.  Their sets, as many random images, a coreset and noise train the same
students under hard labels, under one label of a teacher for each image, and under a teacher asked on every view.
Beside them stand real images that take as many bytes as the set.  A cell's rows are written to `results/benchmark.csv`
as soon as its runs are complete.  What is finished is read, not run again: the command goes on where it was stopped.
"""

import argparse
import sys
from collections.abc import Sequence

from recorded import record
from seeds import FIELDS, rows_of

import dd
from dd.errors import RunError, UsageError

FILE = "benchmark.csv"
SCORED = "eval.labels=hard,soft,views eval.suite=quick eval.coreset=facility,kmeans eval.probes=0"
# noise and all real images are the same beside every set, so they are scored once
ONCE = "eval.references=noise,bytes eval.full_students=1"
EACH = "eval.references=decoded,bytes eval.full=false"
UNLABELLED = ("clpdd", "krrst", "lgm")  # their labels are representations, or their students linear heads
# At small width, CIFAR-10 has the settings of the embedded data; decoupled methods have theirs for colour images.
DATASETS = {
    "fashion-mini": "ipc={ipc} eval.students=1",
    "cifar10": "dataset=cifar10 ipc={ipc} like=fashion-mini.ipc{ipc} eval.students=1",
}
COLOUR = ("cda", "rded", "sre2lpp")
SHORTER = {"softlabel": "experts.epochs=7"}  # on CIFAR-10: the labels are those of epoch 7, the last that is needed


def words_of(dataset: str, method: str, ipc: int) -> str:
    """Return the settings of a cell, as on the command line, without `seed`."""
    words = DATASETS[dataset].format(ipc=ipc)
    if dataset == "cifar10" and method in COLOUR:
        words = words.replace(f"like=fashion-mini.ipc{ipc}", "preset=quick")
    if dataset == "cifar10" and method in SHORTER:
        words += f" {SHORTER[method]}"
    return f"method={method} {words} {SCORED} {ONCE if method == 'random' else EACH}"


def main(arguments: Sequence[str]) -> int:
    """Run the cells and return the exit code: 2 if one of them cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--ipc", default="1,10,50", help="images per class")
    parser.add_argument("--methods", help="all but those without label regimes, if left out")
    parser.add_argument("--seeds", default="0,1,2", help="of the distillations")
    given = parser.parse_args(arguments)
    every = [entry.name for entry in dd.list_methods() if entry.name not in UNLABELLED]
    failed = 0
    for ipc in map(int, given.ipc.split(",")):
        for method in given.methods.split(",") if given.methods else every:
            words = words_of(given.dataset, method, ipc)
            try:
                record(FILE, FIELDS, list(rows_of(words, [int(seed) for seed in given.seeds.split(",")])))
            except (UsageError, RunError) as error:
                print(f"dd run {words}: {error}", file=sys.stderr)
                failed += 1
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
