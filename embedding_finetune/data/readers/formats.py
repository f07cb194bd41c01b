"""CSV, TSV, JSON, Parquet and Excel files as tables, read row by row, whatever their size.

An error in one row is a problem of that row; an error in the file is a UserError. Lines are counted from 1 as in the
file.
"""

import csv
import io
import re
import zipfile
from itertools import islice
from pathlib import Path

from pyarrow.parquet import ParquetFile

from embedding_finetune.data.readers import Table
from embedding_finetune.data.readers.files import (
    LONGEST,
    MOST_UNPACKED,
    compression_of,
    encoding_of,
    first_line,
    is_text,
    not_utf8,
    open_text,
    readable,
    table_ending,
)
from embedding_finetune.data.readers.json_files import open_json
from embedding_finetune.extras import require
from embedding_finetune.files import UserError, one_line

BATCH = 1000  # rows of Parquet and Hub datasets converted to Python values at once
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "|"}
MOST_EXACT = 2**53  # Excel rounds larger numbers, such as long ids
QUOTED = re.compile('"(?:[^"]|"")*"')


def open_table(path: Path, named: str = "") -> Table:
    """The table in a file. `named` is a column that the user names: if it is a number and no column has this name, the
    first line of a CSV file is a row, and its columns are numbered from 1.

    Raises UserError when the file cannot be read, has no rows, or has a column twice.
    """
    with readable(path):
        compression, ending = compression_of(path), table_ending(path)
        if ending == ".parquet" and compression:
            raise UserError(f"{path} is a compressed Parquet file: unpack it")
        with open(path, "rb") as file:
            ending = ".parquet" if file.read(4) == b"PAR1" else ending
        table = (_csv(path, named) if ending in (".csv", ".tsv") else
                 {".parquet": _parquet, ".xlsx": _xlsx}.get(ending, open_json)(path))
        table.how |= {"compression": compression} if compression and ending != ".xlsx" else {}
        duplicates = sorted({column for column in table.columns if table.columns.count(column) > 1})
        if duplicates:
            raise UserError(f"{path} has the column {duplicates[0]!r} twice: rename one of them")
        if not table.columns:
            number, problem = next((row for row in table.records(()) if isinstance(row[1], str)), (0, ""))
            problem = not_utf8(path) if problem.startswith("not UTF-8") else problem
            raise UserError(f"{path} has no row that can be read; {table.unit} {number}: {problem}" if problem else
                            f"{path} is empty: it has no rows")
    return table


def _csv(path, named):
    csv.field_size_limit(LONGEST)
    with open_text(path) as file:
        above, first = first_line(file)
        sep = re.fullmatch(r"\s*sep=(.)\s*", first, re.DOTALL)  # a hint for Excel
        if sep:
            more, first = first_line(file)
            above += 1 + more
    delimiter = sep[1] if sep else "\t" if table_ending(path) == ".tsv" else max(DELIMITERS, key=first.count)
    newline = "\n" if first.endswith("\n") else ""  # where it ends the lines, a lone \r is a letter
    with open_text(path, newline) as file:
        rows = csv.reader(islice(file, above, None), delimiter=delimiter, strict=True)
        columns, data = next(filter(None, rows), []), above + rows.line_num
    if not is_text("".join(columns)):
        raise UserError(f"{path} is {not_utf8(path)}")
    if named.isdigit() and named not in columns:
        columns, data = [str(number) for number in range(1, len(columns) + 1)], above
    columns = _named(columns)
    letters = delimiter == "\t" and _quotes_are_letters(path, newline, data, len(columns))
    how = {"format": "CSV", "encoding": encoding_of(path).removesuffix("-sig"), "delimiter": "{} ({})".format(
        DELIMITERS.get(delimiter, delimiter), "given by sep=" if sep else "detected"),
        "quotes": "are letters (detected)" if letters else "enclose fields"}
    return Table(str(path), columns, _csv_records(path, newline, columns, data, delimiter, letters, how),
                 how=how)


def _named(columns):
    """The columns; those without a name get one, or are left out behind the last one with a name."""
    width = max((number for number, name in enumerate(columns, start=1) if name.strip()), default=0)
    return [name if name.strip() else f"column {number} (no name)" for number, name in
            enumerate(columns[:width], start=1)]


def _quotes_are_letters(path, newline, data, width):
    """Whether the quotes in a TSV file, whose rows begin after line `data`, are letters of its texts.

    They are if each line with a quote has all its fields when it is split at tabs alone (so no quoted field contains a
    tab or a line end), no quote within quotes is doubled, and not all fields of a column are quoted.
    """
    counts, quoted, odd = [0] * width, [0] * width, False
    with open_text(path, newline) as file:
        if not any('"' in part for part in iter(lambda: file.read(2**20), "")):
            return False
    with open_text(path, newline) as file:
        for line in islice(file, data, None):
            fields = line.rstrip("\r\n").split("\t")
            if '"' in line and len(fields) != width:
                return False
            for index, text in enumerate(fields[:width]):
                counts[index] += bool(text)
                if '"' in text:
                    if not QUOTED.fullmatch(text):
                        odd = True
                    elif '""' in text[1:-1] or "\r" in text:
                        return False
                    else:
                        quoted[index] += 1
    shares = [number / max(1, count) for number, count in zip(quoted, counts)]
    return max(shares, default=0) <= 0.5 if odd else any(0 < share < 1 for share in shares)


def _csv_records(path, newline, columns, data, delimiter, letters, how):
    width, quoting = len(columns), csv.QUOTE_NONE if letters else csv.QUOTE_MINIMAL

    def records(wanted):
        place = [(column, columns.index(column)) for column in wanted if column in columns]
        with readable(path), open_text(path, newline) as file:
            rows = csv.reader(islice(file, data, None), delimiter=delimiter, strict=True, quoting=quoting)
            while True:
                start = data + rows.line_num + 1
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    if "unexpected end" in str(error):
                        raise UserError(f"{path}, line {start}: a quote opens here and is never closed, so the rest of "
                                        "the file is one field: close or double it") from None
                    reason = "a stray quote" if "expected after" in str(error) else "not a row of CSV"
                    yield from ((line, f"{reason} ({error})") for line in range(start, data + rows.line_num + 1))
                    continue
                end = data + rows.line_num
                if end > start and _several_rows(row, width, delimiter):
                    if delimiter == "\t":
                        yield from ((line, "a quoted field over several lines, each of which would be a row")
                                    for line in range(start, end + 1))
                        continue
                    how["check the quotes"] = f"of lines {start} to {end}, read as one row, though each would be one"
                if not any(row):  # a blank line, or a row of empty cells
                    continue
                if len(row) < width or any(row[width:]):
                    yield start, f"{len(row)} fields, but the first line has {width}"
                else:
                    values = {column: row[index] for column, index in place}
                    yield start, values if all(map(is_text, values.values())) else "not UTF-8: save the file as UTF-8"

    return records


def _several_rows(row, width, delimiter):
    """Whether each line of a row with line ends in its fields would be a row of its own if quotes were letters."""
    return all(line.count(delimiter) == width - 1 for line in re.split("\r\n|\n|\r", delimiter.join(row)))


def _parquet(path):
    file = ParquetFile(path)
    names = file.schema_arrow.names

    def records(wanted):
        with readable(path):
            batches = file.iter_batches(BATCH, columns=[column for column in wanted if column in names])
            yield from enumerate((values for batch in batches for values in batch.to_pylist()), start=1)

    return Table(str(path), names, records, "row", {"format": "Parquet"})


def _xlsx(path):
    """The one sheet of an Excel file that has cells; its first row holds the names of the columns."""
    openpyxl = require("openpyxl")
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > max(MOST_UNPACKED[0], MOST_UNPACKED[1] * len(content)):
            raise UserError(f"{path} unpacks to {size / 1e6:.0f} MB: save the sheet as CSV in UTF-8")
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
    except UserError:
        raise
    except Exception as error:  # openpyxl raises many kinds of errors for broken files
        raise UserError(f"cannot read {path}: {one_line(error)}") from None
    sheets = {title: rows for title, rows in sheets.items() if any(any(row) for row in rows)}
    if len(sheets) > 1:
        raise UserError(f"{path} has the sheets {', '.join(sheets)}: save the one to read as a file of its own")
    first, *rows = next(iter(sheets.values()), [()])
    columns = _named([str(value) if value is not None else "" for value in first])
    width = len(columns)

    def records(wanted):
        for number, row in enumerate(rows, start=2):
            if any(value is not None for value in row[width:]):
                yield number, f"{len(row)} cells, but the first row has {width}"
            elif any(value is not None for value in row):
                yield number, {column: int(value) if isinstance(value, float) and value.is_integer()
                               and abs(value) < MOST_EXACT else value for column, value in zip(columns, row)}

    return Table(str(path), columns, records, "row", {"format": f"Excel, sheet {next(iter(sheets), '')}"})
