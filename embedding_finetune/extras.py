"""Installed packages: those read as data, and those that few users need, by their file in requirements/."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from embedding_finetune.files import UserError

EXTRAS = {  # name in `import` -> (name in the package index, NAME of requirements/NAME.txt)
    "bs4": ("beautifulsoup4", "documents"), "charset_normalizer": ("charset-normalizer", "documents"),
    "markdown_it": ("markdown-it-py", "documents"), "openpyxl": ("openpyxl", "documents"),
    "pypdf": ("pypdf", "documents"), "semantic_text_splitter": ("semantic-text-splitter", "documents"),
    "nncf": ("nncf", "openvino"), "openvino": ("openvino", "openvino"),
    "milvus_lite": ("milvus-lite", "milvus"), "pymilvus": ("pymilvus", "milvus"), "ray": ("ray", "ray"),
}


def package_folder(name: str, setting: str, package: str = "") -> Path:
    """The folder of a package of requirements.txt that `setting` reads as data; it is not imported.

    `name` is that in `import`, `package` that in the package index, if they differ. Raises UserError if it is not
    installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package or name} is not installed, and {setting} reads it: "
                        "pip install -r requirements.txt")
    return Path(spec.submodule_search_locations[0])


def require(name: str) -> ModuleType:
    """Import a package of EXTRAS. Raises UserError, which names the requirements file, if it is not installed."""
    package, extra = EXTRAS[name]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is installed, but something that it needs is not
            raise
        raise UserError(f"`{package}` is not installed: pip install -r requirements/{extra}.txt") from None
