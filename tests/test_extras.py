"""A package of requirements/ that is not installed: one line says how to install it."""

import re
import sys

import pytest

from embedding_finetune.contrib.milvus import MilvusIndex
from embedding_finetune.contrib.ray_encode import cluster
from embedding_finetune.data.documents.chunker import Chunker
from embedding_finetune.data.documents.files import read_document
from embedding_finetune.extras import EXTRAS, require
from embedding_finetune.files import UserError
from embedding_finetune.models.compiled_model import import_silently
from embedding_finetune.settings import ROOT

PACKAGE = ROOT / "embedding_finetune"


def document(folder, ending, content=b"# Title\n\ntext\n"):
    path = folder / f"page{ending}"
    path.write_bytes(content)
    return read_document(path)


USES = {  # module -> what needs it, given a folder
    "charset_normalizer": lambda folder: document(folder, ".txt", "größer".encode("latin-1")),
    "markdown_it": lambda folder: document(folder, ".md"), "bs4": lambda folder: document(folder, ".html"),
    "pypdf": lambda folder: document(folder, ".pdf"),
    "semantic_text_splitter": lambda folder: Chunker._splitter(None, 10),
    "openvino": lambda folder: import_silently("openvino"), "nncf": lambda folder: import_silently("nncf"),
    "pymilvus": lambda folder: MilvusIndex("milvus:http://127.0.0.1:1")._client(),
    "milvus_lite": lambda folder: MilvusIndex(f"milvus:{folder}/milvus.db")._client(),
    "ray": lambda folder: cluster("local").__enter__()}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_package_is_one_line(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    package, extra = EXTRAS[name]
    with pytest.raises(UserError, match=f"^`{package}` is not installed: pip install -r requirements/{extra}.txt$"):
        USES.get(name, lambda folder: require(name))(tmp_path)


def test_what_a_package_needs_itself_is_not_taken_for_the_package(monkeypatch, tmp_path):
    (tmp_path / "nncf.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nncf", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        require("nncf")


def test_no_module_imports_such_a_package_at_its_top():
    found = [path for path in PACKAGE.rglob("*.py")
             if re.search(rf"^(import|from) ({'|'.join(EXTRAS)})\b", path.read_text(encoding="utf-8"), re.MULTILINE)]
    assert found == []


def test_each_package_is_in_the_file_that_the_line_names():
    for package, extra in EXTRAS.values():
        assert re.search(rf"^{package}\b", (ROOT / "requirements" / f"{extra}.txt").read_text(), re.MULTILINE), package
