"""Packages that few users need: the file in requirements/ that installs each of them."""

import importlib
from types import ModuleType

from embedding_finetune.files import UserError

EXTRAS = {  # name in `import` -> (name in the package index, NAME of requirements/NAME.txt)
    "bs4": ("beautifulsoup4", "documents"), "charset_normalizer": ("charset-normalizer", "documents"),
    "markdown_it": ("markdown-it-py", "documents"), "openpyxl": ("openpyxl", "documents"),
    "pypdf": ("pypdf", "documents"), "semantic_text_splitter": ("semantic-text-splitter", "documents"),
    "nncf": ("nncf", "openvino"), "openvino": ("openvino", "openvino"),
    "milvus_lite": ("milvus-lite", "milvus"), "pymilvus": ("pymilvus", "milvus"), "ray": ("ray", "ray"),
}


def require(name: str) -> ModuleType:
    """Import a package of EXTRAS. Raises UserError, which names the requirements file, if it is not installed."""
    package, extra = EXTRAS[name]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is installed, but something that it needs is not
            raise
        raise UserError(f"`{package}` is not installed: pip install -r requirements/{extra}.txt") from None
