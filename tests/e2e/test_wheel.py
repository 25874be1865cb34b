"""What is installed from a wheel is whole, and holds nothing else."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PATIENCE = 240  # seconds
LITTER = ("runs", "build", "dist", "dd_workbench.egg-info", "wandb")
QUIET = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")


def pip(*args: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *args], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, as building leaves things behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in CHECKOUT.iterdir():
        if path.is_dir() and not path.name.startswith(".") and path.name not in LITTER:
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, source)
    pip("wheel", *QUIET, "--no-build-isolation", "--wheel-dir", str(target), str(source))
    (found,) = target.glob("*.whl")
    return found


def test_what_is_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"dd"}
    assert [name for name in names if "tests/" in name or "benchmarks" in name] == []
    for here, there in (
        ("experiments/recipes", "dd/experiments/recipes"),
        ("experiments/sweeps", "dd/experiments/sweeps"),
        ("assets/fashion-mini", None),
    ):
        for file in (CHECKOUT / here).iterdir():
            assert f"{there or 'dd/' + here}/{file.name}" in names
    for file in (*(CHECKOUT / "dd").rglob("*.py"), *(CHECKOUT / "methods").rglob("*.py")):
        assert str(file.relative_to(CHECKOUT)).replace("methods/", "dd/methods/", 1) in names
    assert "dd/data/sources/imagenet_subsets.toml" in names
    for file in (CHECKOUT / "assets" / "released").rglob("*.*"):
        assert f"dd/{file.relative_to(CHECKOUT)}" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_it_works_where_there_is_no_checkout(wheel, place, short, tmp_path):
    installed = tmp_path / "installed"
    pip("install", *QUIET, "--target", str(installed), str(wheel))
    # without `site`, the finder of an editable install does not step in for what the wheel lacks
    path = os.pathsep.join([str(installed), *(folder for folder in sys.path if folder.endswith("site-packages"))])

    def call(*args: str) -> dict:
        command = [sys.executable, "-S", "-m", "dd", *args, "--json"]
        environment = place.environment | {"PYTHONPATH": path}
        done = subprocess.run(
            command, cwd=place.path, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    cells = {(row["method"], row["cell"]) for row in call("recipes")["recipes"]}
    assert {("mtt", "fashion-mini.ipc10"), ("datm", "cifar10.ipc50"), ("random", "fashion-mini.ipc1")} <= cells
    assert "dm/fashion-mini-ipc1" in {row["name"] for row in call("sets", "fashion-mini")["sets"]}
    assert Path(call("pull", "random/fashion-mini-ipc1")["set"]).is_relative_to(place.home)
    report = call("run", *short)
    assert report["dataset"]["where"].startswith(str(installed))
    assert report["files"]["set"].startswith(str(place.runs))
