"""Pairs from the docstrings of installed packages: the first paragraph is the query, the rest the passage."""

import ast
import importlib.metadata
import inspect
import warnings
from collections.abc import Iterable, Iterator

from tqdm.auto import tqdm

from embedding_finetune.data.readers import Row
from embedding_finetune.extras import package_folder

IMPORT_NAMES: dict[str, str] = {"scikit-learn": "sklearn"}
HIDDEN = ("tests", "testing", "conftest")
QUERY_WORDS = range(4, 41)  # queries of other lengths are skipped
PASSAGE_WORDS = range(10, 65)  # shorter passages are skipped, longer ones truncated


def read_docstrings(packages: Iterable[str]) -> Iterator[Row]:
    """Rows of the public docstrings of these packages, with sources such as `scipy.linalg.eig (scipy 1.17.1)`.

    The sources are parsed, not imported. Private names and files (leading underscore) and tests are skipped. Raises
    UserError when a package is not installed.
    """
    for package in tqdm(packages, desc="reading docstrings", unit="package"):
        name = IMPORT_NAMES.get(package, package)
        folder = package_folder(name, "DATASET=docstrings", package)
        origin = f"({package} {importlib.metadata.version(package)})"
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if any(part.startswith("_") and part != "__init__" or part in HIDDEN for part in parts):
                continue
            try:
                with warnings.catch_warnings(action="ignore"):  # invalid escape sequences in the packages
                    tree = ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):  # a package may carry files for other interpreters
                continue
            module = ".".join([name, *(part for part in parts if part != "__init__")])
            for qualified, docstring in public_docstrings(tree, module):
                yield from as_row(docstring, f"{qualified} {origin}")


def public_docstrings(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    """(Qualified name, docstring) of the public classes, functions and methods of the module or class `name`."""
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            docstring, qualified = ast.get_docstring(child), f"{name}.{child.name}"
            if docstring:
                yield qualified, docstring
            if isinstance(child, ast.ClassDef):
                yield from public_docstrings(child, qualified)


def as_row(docstring: str, source: str | None = None) -> Iterator[Row]:
    """Yield the row of a docstring, or nothing if a side is too short or the query too long."""
    query, _, passage = inspect.cleandoc(docstring).partition("\n\n")
    query, words = " ".join(query.split()), passage.split()
    if len(query.split()) in QUERY_WORDS and len(words) >= PASSAGE_WORDS.start:
        yield Row(query, [" ".join(words[:PASSAGE_WORDS.stop - 1])], source=source)
