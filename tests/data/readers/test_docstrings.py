import ast
import re

import pytest

from embedding_finetune.data import cleaning
from embedding_finetune.data.readers import Row
from embedding_finetune.data.readers.docstrings import as_row, public_docstrings
from embedding_finetune.files import UserError
from embedding_finetune.settings import Settings


def test_docstrings_of_public_names_become_pairs():
    source = '''
class Kettle:
    """Boil water in a vessel with a lid.

    The vessel stands on a stove until the water in it boils, which takes some minutes at sea level.
    """
    def pour(self):
        """Fill a cup from the kettle.

        Too short.
        """
    def _lid(self):
        """A private thing nobody should find here.

        The words of this passage are many enough to make a pair if only the name were public.
        """
'''
    found = [row for name, docstring in public_docstrings(ast.parse(source), "tea") for row in as_row(docstring, name)]
    assert found == [Row("Boil water in a vessel with a lid.", [
        "The vessel stands on a stove until the water in it boils, which takes some minutes at sea level."],
        source="tea.Kettle")]
    assert [name for name, _ in public_docstrings(ast.parse(source), "tea")] == ["tea.Kettle", "tea.Kettle.pour"]


def test_docstrings_of_an_installed_package(monkeypatch):
    monkeypatch.setattr(cleaning, "DOCSTRING_PACKAGES", ("networkx",))
    collection, _ = cleaning.read_pairs(Settings.load("demo"))
    assert len(collection.queries) > 300
    [query] = [key for key, text in collection.queries.items() if text == "Returns the average shortest path length."]
    [passage] = collection.positives(query)
    assert re.fullmatch(r"networkx\.algorithms\.shortest_paths\.generic\.average_shortest_path_length "
                        r"\(networkx [\d.]+\)", collection.source[passage])
    monkeypatch.setattr(cleaning, "DOCSTRING_PACKAGES", ("no-such-package",))
    with pytest.raises(UserError, match="no-such-package is not installed"):
        cleaning.read_pairs(Settings.load("demo"))
