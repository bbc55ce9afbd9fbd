"""The wheel: what is in it, what it says of itself, and that it works without this folder.

It is installed beside the dependencies of this environment. `make wheel-check` installs it with all its dependencies
into an empty environment; that needs a package index and 6 GB.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

if find_spec("build") is None or find_spec("hatchling") is None:
    pytest.skip("no build or hatchling: pip install build hatchling", allow_module_level=True)

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(*words, **options):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def metadata(built):
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(wheel.read(name))


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
    source = ROOT / "src"
    package = {
        str(path.relative_to(source))
        for path in (source / "equimid").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == package
    assert "equimid/py.typed" in package
    assert not any("benchmark" in name or "test_" in name for name in package)
    own = {Path(name).name for name in names if ".dist-info/" in name}
    assert own == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}
    assert built[1].name.endswith("-py3-none-any.whl")
    assert built[1].stat().st_size < 2**20, "a wheel of less than 1 MiB: no pictures, no data"


def test_the_source_distribution_holds_what_builds_and_tests_it(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "src/equimid/py.typed"}
    assert names >= {"tests/test_wheel.py", "docs/conf.py", "examples/own_loop.py"}
    left = {name.split("/")[0] for name in names} & {".venv", ".git", "runs", "measured", "sweeps", "demo", "dist"}
    assert not left


def test_the_metadata_says_what_pyproject_says(metadata):
    assert metadata["Name"] == PROJECT["name"]
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    needed = [name for name in metadata.get_all("Requires-Dist") if "extra ==" not in name]
    assert sorted(needed) == sorted(PROJECT["dependencies"])
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata.get_payload().startswith("# equimid")


def test_citation_and_workflow_say_what_pyproject_says():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    versions = [word.split(" :: ")[-1] for word in PROJECT["classifiers"] if re.search(r":: Python :: 3\.\d+$", word)]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    rows = {row["torch"]: row for row in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]}
    assert [rows["oldest"]["python"], rows["newest"]["python"]] == [versions[0], versions[-1]]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    pinned = re.findall(r"^(\w+)==([\d.]+)\.\*$", (ROOT / rows["oldest"]["constraint"]).read_text(), flags=re.MULTILINE)
    assert len(pinned) == 2
    assert all(f"{name}>={version}" in PROJECT["dependencies"] for name, version in pinned)


def test_it_works_without_this_folder(built, tmp_path):
    """The commands of the README on a folder of twelve images, and the example of an own loop."""
    library, example = tmp_path / "library", tmp_path / "own_loop.py"
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", library, built[1])
    shutil.copy(ROOT / "examples" / "own_loop.py", example)
    shutil.copy(Path(__file__).with_name("helpers") / "installed_check.py", tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    # a package is imported from one place: the first on the path that has it
    surroundings = {**os.environ, "PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
    said = python(tmp_path / "installed_check.py", empty, example, cwd=empty, env=surroundings)
    assert f"equimid {PROJECT['version']} in {library / 'equimid'}" in said
    assert "all as the README says" in said
    assert {path.name for path in empty.iterdir()} == {"photos", "runs"}, "nothing else is left in the working folder"
