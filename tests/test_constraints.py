"""Every package that the pinned ones need in turn has its version in .ci/constraints.txt, which `make install` takes.

    python tests/test_constraints.py > .ci/constraints.txt    after a change of requirements and an install
"""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "requirements.txt", *sorted((ROOT / "requirements").glob("*.txt"))]
LINES = [re.sub(r"\s*#.*", "", line) for file in FILES for line in file.read_text().splitlines()]
PINNED = [Requirement(line) for line in LINES if line]
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
HEAD = "# Versions of what the pinned packages need in turn; made by tests/test_constraints.py.\n"


def needed(requirements, everywhere=False):
    """Name -> version of the packages that are installed because one of these needs them; `everywhere` leaves out what
    only some platforms or versions of Python need. Not those that whoever needs them pins itself, as torch does its
    CUDA libraries."""
    found, exact, waiting = {}, set(), list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        exact |= {name} if any(one.operator in ("==", "===") and "*" not in one.version
                               for one in requirement.specifier) else set()
        asked = found.setdefault(name, set())
        new = {"", *requirement.extras} - asked
        asked |= new
        for extra in new:
            try:
                others = map(Requirement, distribution(name).requires or ())
            except PackageNotFoundError:  # of another platform, whose marker is not one
                break
            waiting += [other for other in others if (not extra if not other.marker else
                        other.marker.evaluate({"extra": extra})
                        and not (everywhere and re.search("python|platform|os_name", str(other.marker))))]
    return {name: version(name) for name in sorted(found.keys() - exact)}


def test_every_version_is_written_down():
    written = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines()[1:])
    assert [name for name in needed(PINNED, everywhere=True) if name not in written] == []
    assert {name: number for name, number in needed(PINNED).items() if written.get(name, number) != number} == {}
    assert "-r requirements.txt -c .ci/constraints.txt" in (ROOT / "Makefile").read_text()


def test_every_package_is_pinned_once():
    assert all(re.search(r"==[\w.]+$", line) for line in LINES if line)
    assert len(PINNED) == len({requirement.name for requirement in PINNED})


def test_every_layer_can_be_installed_by_its_name():
    """`pip install embedding-finetune[milvus]` and `pip install -r requirements/milvus.txt` are the same."""
    dynamic = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements.txt"]}
    layers = {file.stem: {"file": [f"requirements/{file.name}"]} for file in FILES[1:]}
    assert dynamic["optional-dependencies"] == layers


def test_what_is_needed_in_turn_is_found():
    found = needed([Requirement("fastapi==1"), Requirement("pytest==1")])
    assert {"starlette", "pydantic", "anyio", "pluggy"} <= found.keys() and not {"fastapi", "pytest"} & found.keys()
    assert "pydantic-core" not in found  # pydantic pins it
    assert found["starlette"] == version("starlette")


if __name__ == "__main__":
    print(HEAD + "\n".join(f"{name}=={number}" for name, number in needed(PINNED).items()))
