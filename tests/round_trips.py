"""Round trips: tables of any Unicode text, written as programs write them, are read back as they were, or refused."""

import csv
import io
import json
import re

import pandas as pd
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from hypothesis import strategies as st

from embedding_finetune.data.readers import Row, Source
from embedding_finetune.data.readers.tables import read_table
from embedding_finetune.data.readers.values import MISSING
from embedding_finetune.files import UserError

PIECES = st.sampled_from([
    '"', "'", ",", ";", "\t", "\n", "\r", "\r\n", "|", "\\", " ", '""', "nan", "[", "{", "a", "b c", "1", "0.5", "true",
    "\u200b", "\u200d", "\ufeff", "\u202e", "\u2028", "\x85", "\xa0", "\0", "sep=;", "=1+1", "مرحبا", "第二", "👩‍🚀"])
LETTERS = st.text(max_size=4, alphabet=st.characters(exclude_categories=["Cs"]))
TEXT = st.lists(PIECES | LETTERS, max_size=5).map("".join)
IDS = st.one_of(st.none(), TEXT, st.integers(), st.sampled_from(["007", "1.0", "q-1", "-", "1e5", "NULL"]))
ROWS = st.lists(st.fixed_dictionaries({"query": TEXT, "pos": TEXT, "neg": TEXT, "id": IDS}), min_size=1, max_size=5)


def written_by_csv(rows, dialect, ending, encoding, **options):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], dialect=dialect, **options)
    writer.writeheader()
    writer.writerows(rows)
    return ending, text.getvalue().encode(encoding)


def in_columns(rows):
    return [list(rows[0]), *([row[column] for column in rows[0]] for row in rows)]


def changed(rows, change):
    """Change the texts in place, so that what is expected is changed as well."""
    for row in rows:
        row.update({key: change(value) if isinstance(value, str) else value for key, value in row.items()})


def tsv(rows, **options):
    """Tabs or line ends in a text, but not both: a tab behind a line end could be a row of its own."""
    changed(rows, lambda text: re.sub(r"[\r\n]", " ", text) if "\t" in text else text)
    return written_by_csv(rows, "excel-tab", ".tsv", "utf-8", **options)


def unquoted_tsv(rows):
    """Tab-separated without quoting: quotes are letters."""
    changed(rows, lambda text: re.sub('[\\t\\r\\n]|"+$', " ", re.sub('"+', '"', text)))
    return ".tsv", "".join("\t".join("" if value is None else str(value) for value in row) + "\n"
                           for row in in_columns(rows)).encode()


def by_arrow(rows, write):
    content = io.BytesIO()
    texts = [row | {"id": None if row["id"] is None else str(row["id"])} for row in rows]
    write(pyarrow.Table.from_pylist(texts), content)
    return content.getvalue()


def by_pandas(rows):
    changed(rows, lambda text: text.replace("\r", " "))  # pandas does not quote it, so such a file can be read two ways
    return ".csv", pd.DataFrame(rows, dtype=object).to_csv(index=False).encode()


def by_excel(rows):
    import openpyxl
    changed(rows, lambda text: re.sub("^=|[\x00-\x08\x0b-\x1f\ufffe\uffff]", "", text) or "x")  # what XML can hold
    book, content = openpyxl.Workbook(), io.BytesIO()
    for row in in_columns(rows):
        book.active.append(row)
    book.save(content)
    return ".xlsx", content.getvalue()


def by_datasets(rows, method):
    import datasets
    content = io.BytesIO()
    table = datasets.Dataset.from_list([row | {"id": None if row["id"] is None else str(row["id"])} for row in rows])
    getattr(table, f"to_{method}")(content)
    return content.getvalue()


WRITERS = {
    "csv": lambda rows: written_by_csv(rows, "excel", ".csv", "utf-8"),
    "csv with a byte order mark": lambda rows: written_by_csv(rows, "unix", ".csv", "utf-8-sig"),
    "csv in UTF-16": lambda rows: written_by_csv(rows, "excel", ".csv", "utf-16", quoting=csv.QUOTE_ALL),
    "csv by semicolons": lambda rows: written_by_csv(rows, "excel", ".csv", "utf-8", delimiter=";"),
    "tsv": tsv,
    "tsv, all quoted": lambda rows: tsv(rows, quoting=csv.QUOTE_ALL),
    "tsv without quoting": unquoted_tsv,
    "csv of pandas": by_pandas,
    "csv of Arrow": lambda rows: (".csv", by_arrow(rows, pyarrow.csv.write_csv)),
    "parquet": lambda rows: (".parquet", by_arrow(rows, pyarrow.parquet.write_table)),
    "parquet of datasets": lambda rows: (".parquet", by_datasets(rows, "parquet")),
    "json lines of datasets": lambda rows: (".jsonl", by_datasets(rows, "json")),
    "json lines of pandas": lambda rows: (".jsonl", pd.DataFrame(rows, dtype=object).to_json(
        orient="records", lines=True).encode()),
    "json lines": lambda rows: (".jsonl", "".join(json.dumps(without_none(row), ensure_ascii=False) + "\n"
                                                  for row in rows).encode()),
    "json lines, ASCII": lambda rows: (".jsonl", "\n".join(map(json.dumps, rows)).encode()),
    "json": lambda rows: (".json", json.dumps(rows).encode()),
    "json, indented": lambda rows: (".json", json.dumps({"data": rows}, indent=2).encode()),
    "objects, indented": lambda rows: (".jsonl", "\n".join(json.dumps(row, indent=1) for row in rows).encode()),
    "Excel": by_excel,
}


def without_none(row):
    return {key: value for key, value in row.items() if value is not None}


def check(folder, settings, writer, rows):
    """Write the rows and read them back. Each is the same, or broken for a reason; without odd texts all are the same.
    """
    ending, content = WRITERS[writer](rows)
    path = folder / f"rows{ending}"
    path.write_bytes(content)
    texts = [text for row in rows for text in (row["query"], row["pos"], row["neg"], str(row["id"] or "x"))]
    odd = any(text in MISSING or text[:1] in ("[", "{") for text in texts)
    odd = odd or writer == "Excel" and any(isinstance(row["id"], int) and abs(row["id"]) >= 2**53 for row in rows)
    try:
        source, *found = read_table(str(path), settings)
    except UserError as error:
        assert str(path) in str(error) and odd, error
        return
    assert isinstance(source, Source)
    wanted = [Row(row["query"], [row["pos"]], str(row["id"]) if row["id"] not in (None, "") else None, [row["neg"]])
              for row in rows]
    if ending in (".csv", ".tsv"):  # a row of empty fields is a blank line
        wanted = [row for row in wanted if row.query or row.positives[0] or row.negatives[0] or row.id]
    blank = any(not row["query"].strip() or not (row["pos"] + row["neg"]).strip() for row in rows)
    assert len(found) == len(wanted) or odd and any(own.problem for own in found), (len(found), source)
    for own in found:
        if own.problem:
            assert odd or blank and own.problem in ("no query", "no relevant passage"), own
        elif not any("lists written as text" in key for key in source.how):
            own.positives, own.negatives, own.where = own.positives or [""], own.negatives or [""], ""  # in a sheet
            assert own in wanted, (own, wanted)
            del wanted[:wanted.index(own) + 1]
