"""Rows from tables: the columns that are read, and what their values mean."""

import re
from collections.abc import Iterator
from itertools import islice

from embedding_finetune.data.readers import Row, Source, Table
from embedding_finetune.data.readers.files import SPLIT_NAMES, choose_split, table_files
from embedding_finetune.data.readers.formats import BATCH, open_table
from embedding_finetune.data.readers.values import Texts, id_of, number_of
from embedding_finetune.files import UserError
from embedding_finetune.hub import load_data_set
from embedding_finetune.settings import path_of

# Column names that are recognized if a table has exactly one match.
QUERY = r"query|queries|questions?|anchor|(question|sentence)[-_ ]?[1a]"
POSITIVES = (r"pos|positives?|passages?|answers?|documents?|docs?|texts?|contents?|contexts?|responses?"
             r"|(question|sentence)[-_ ]?[2b]")
NEGATIVES = r"(hard[-_]?)?neg(ative)?s?([-_]\d+)?"
QUERY_ID = "_?id|qid|query[-_]?id"
LABEL = "labels?|grades?|scores?|relevance|rel|similarity|is[-_]?duplicate"
SPLIT = "split"
TEXT = "text|passage|document|doc|content|contents|body"
TITLE = "title"
TEXT_ID = "_?id|pid|doc[-_]?id|passage[-_]?id|corpus[-_]?id"
SOURCE = "source|url"
CONTEXT, ANSWERS = "contexts?", "answers?"  # together, as in SQuAD: a passage, and answers that occur in it
PEEK = 20  # rows of which the answers are looked up in their contexts
GRADES = range(6)  # of a label column; other values need a threshold


def read_table(name: str, settings) -> Iterator[Source | Row]:
    """Rows of `name`, tables or a Hub dataset, by QUERY_COLUMN, POSITIVE_COLUMN, NEGATIVE_COLUMN, ID_COLUMN,
    LABEL_COLUMN and SPLIT_COLUMN.

    A row with several queries becomes several Rows. A passage labelled 0 is a negative. Raises UserError when a label
    or a split has no known meaning.
    """
    columns = _Columns(name, settings, QUERY_COLUMN=QUERY, POSITIVE_COLUMN=POSITIVES, NEGATIVE_COLUMN=NEGATIVES,
                       ID_COLUMN=QUERY_ID, LABEL_COLUMN=LABEL, SPLIT_COLUMN=SPLIT)
    texts = Texts(columns.source)

    def rows(values):
        queries, positives = texts(values, columns["QUERY_COLUMN"]), texts(values, columns["POSITIVE_COLUMN"])
        negatives = texts(values, columns["NEGATIVE_COLUMN"])
        if not "".join(queries).strip():
            raise ValueError("no query")
        if not "".join(positives + negatives).strip():
            raise ValueError("no relevant passage")
        grade, split = columns.grade(values), columns.split(values)
        if grade == 0:
            positives, negatives = [], positives + negatives
        identity, source = id_of(values, columns["ID_COLUMN"]), texts.source(values, columns)
        if len(queries) == 1:
            return [Row(queries[0], positives, identity, negatives, source, grade=grade, split=split)]
        columns.source.how["several queries in a row"] = "each is a query; ids get -1, -2, .."
        return [Row(query, positives, f"{identity}-{number}" if identity else None, negatives, source, grade=grade,
                    split=split) for number, query in enumerate(queries, start=1)]

    yield from _rows(_open(name, settings.split, "SPLIT", settings.query_column), columns, rows)


def read_passages(name: str, settings) -> Iterator[Source | Row]:
    """Rows without queries of `name`, tables or a Hub dataset.

    The text is CORPUS_TITLE_COLUMN followed by CORPUS_TEXT_COLUMN, the id CORPUS_ID_COLUMN.
    """
    columns = _Columns(name, settings, CORPUS_TEXT_COLUMN=TEXT, CORPUS_TITLE_COLUMN=TITLE, CORPUS_ID_COLUMN=TEXT_ID)
    texts = Texts(columns.source)

    def rows(values):
        titles, found = (texts(values, columns[name]) for name in ("CORPUS_TITLE_COLUMN", "CORPUS_TEXT_COLUMN"))
        identity = id_of(values, columns["CORPUS_ID_COLUMN"])
        if len(titles) > 1 or identity and len(found) > 1:
            raise ValueError("several titles" if len(titles) > 1 else "several texts with one id")
        whole = [" ".join([*titles, text]) for text in found or ([""] if titles else [])]
        if not any(map(str.strip, whole)):
            raise ValueError("no text")
        return [Row(None, whole, identity, source=texts.source(values, columns))]

    yield from _rows(_open(name, settings.corpus_split, "CORPUS_SPLIT", settings.corpus_text_column), columns, rows)


def _open(name, split, setting, named) -> list[Table]:
    """The tables of a file, of several, of a cloned dataset, or of the Hub."""
    files = table_files(name)
    if not files:
        return [_hub(name, split, setting)]
    if path_of(name).is_dir():
        files = choose_split(files, path_of(name), split, setting)
    return [open_table(path, named) for path in files]


def _hub(name, split, setting):
    """A dataset of the Hugging Face Hub, named as for load_data_set; raises UserError when it cannot be loaded."""
    splits, name = load_data_set(name), name.partition(":")[0]
    if (split or len(splits) > 1) and split not in splits:
        raise UserError(f"{name} has the splits {', '.join(splits)}: set {setting} to one of them")
    rows = splits[split or next(iter(splits))]

    def records(wanted):
        batches = rows.select_columns(wanted).with_format("arrow").iter(BATCH)
        yield from enumerate((values for batch in batches for values in batch.to_pylist()), start=1)

    return Table(name, rows.column_names, records, "row", {"format": "Hub dataset"})


def _rows(tables, columns, rows):
    """The Source of the tables and their Rows, `rows(values)` for each record; columns may arrive late in JSON."""
    columns.open(tables)
    yield columns.source
    for table in tables:
        for number, values in table.records(columns.wanted):
            where = f"{table.name}, {table.unit} {number}"
            if isinstance(values, Row):
                values.where = where
                yield values
                continue
            try:
                if isinstance(values, str):
                    raise ValueError(values)
                if not values.keys() <= columns.names.keys():
                    columns.add(values, where)
                for row in rows(values):
                    row.where = where
                    yield row
            except ValueError as error:
                yield Row(None, [], where=where, problem=str(error))
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        columns.source.how |= table.how


def _answers(value):
    """The answers in a value: a text, a list of texts, or an object with them as `text`, as in SQuAD."""
    found = value.get("text") if isinstance(value, dict) else value
    return [str(text).strip() for text in (found if isinstance(found, list) else [found]) if text and str(text).strip()]


class _Columns:
    """The columns to read, setting -> list: those that the settings name, else those recognized by name.

    `usual` gives the recognized names by setting. The choice is made from the columns of all tables, and again when a
    row brings a new one. Prints the guesses. Raises UserError when a column does not exist, when the first of `usual`
    or POSITIVE_COLUMN is ambiguous, or when a label or a split is.
    """

    def __init__(self, name, settings, **usual):
        self.settings, self.usual, self.source = settings, usual, Source(name)
        self.names, self.threshold, self.chosen, self.extracts = {}, None, {}, False

    def __getitem__(self, setting):
        return self.chosen[setting]

    @property
    def wanted(self):
        return list(dict.fromkeys(column for names in self.chosen.values() for column in names))

    def open(self, tables):
        """Choose from the columns of these tables; a column that the user names may first occur in any row."""
        for table in tables:
            self.source.how |= table.how
        if len(tables) > 1:
            self.source.how["files"] = ", ".join(table.name for table in tables)
        fixed, self.names = tables[0].roles, dict.fromkeys(column for table in tables for column in table.columns)
        if fixed:
            self.source.columns, self.chosen = fixed, {}
        else:
            for setting in self.usual:
                value = self._named(setting)
                if value not in ("auto", "none") and value not in self.names and any(
                        value in values for table in tables for _, values in table.records([value])
                        if isinstance(values, dict)):
                    self.names[value] = None
            self.extracts = self._are_extracts(tables)
            self.chosen = self._choose()
            self._describe()

    def add(self, columns, where):
        """Take the new columns of a row into account. Raises UserError when they make the choice ambiguous."""
        before, self.names = self.chosen, dict.fromkeys([*self.names, *columns])
        self.chosen = self._choose(where)
        for setting, names in before.items():
            if self.chosen[setting][:len(names)] != names:
                raise UserError(f"with a new column, {setting} could be {' or '.join(map(repr, self.names))}: set it")
        self._describe()

    def _named(self, setting):
        """The column that a setting names; "score>=0.5" sets the threshold of LABEL_COLUMN as well."""
        value = getattr(self.settings, setting.lower())
        parts = re.fullmatch(r"(.+)>=(-?\d+(?:\.\d+)?)", value) if setting == "LABEL_COLUMN" else None
        if parts and value not in self.names:
            self.threshold = float(parts[2])
            return parts[1].strip()
        return value

    def _choose(self, where=""):
        listed = ", ".join(repr(str(column)[:40]) for column in [*self.names][:30]) or "none"
        chosen, guessed, doubts = {"source": self._alike(SOURCE)[:1]}, [], []
        for number, (setting, names) in enumerate(self.usual.items()):
            value, needed = self._named(setting), number == 0 or setting == "POSITIVE_COLUMN"
            if value in self.names:
                chosen[setting] = [value]
            elif value not in ("auto", "none") or value == "none" and needed:
                raise UserError(f"{setting}={value}: {self.source.name} has no such column; it has {listed}")
            else:
                found = self._found_by_name(setting, names, chosen) if value == "auto" else []
                unambiguous = len(found) == 1 or setting == "NEGATIVE_COLUMN"
                chosen[setting] = found if unambiguous else []
                meant = needed or found and setting in ("LABEL_COLUMN", "SPLIT_COLUMN")
                doubts += [setting] if meant and not unambiguous else []
                guessed += [f"{setting}={', '.join(found)}"] if chosen[setting] else []
                guessed += [f"{setting}=none (or {' or '.join(found)}?)"] if found and not unambiguous else []
        if doubts:
            raise UserError(f"{self.source.name} has the columns {listed}: set {' and '.join(doubts)} to the right ones"
                            + ("" if {*doubts} <= {"QUERY_COLUMN", "POSITIVE_COLUMN", "CORPUS_TEXT_COLUMN"} else
                               ", or to none"))
        if guessed and not where:
            print(f"{self.source.name}: guessed from the column names: {'; '.join(guessed)}")
        return chosen

    def _are_extracts(self, tables):
        """Whether there is one column of contexts and one of answers, and the first answers occur in their contexts."""
        contexts, answers = map(self._alike, (CONTEXT, ANSWERS))
        if len(contexts) != 1 or len(answers) != 1:
            return False
        rows = [(values.get(contexts[0]), _answers(values.get(answers[0]))) for table in tables
                for _, values in islice(table.records(contexts + answers), PEEK) if isinstance(values, dict)]
        within = [text in str(context) for context, found in rows for text in found]
        return bool(within) and all(within)

    def _found_by_name(self, setting, names, chosen):
        """The columns with one of the usual names. Of a context and answers that occur in it, the context is the
        passage, and the answers say whether it is relevant: it is not if there are none.
        """
        found, contexts, answers = map(self._alike, (names, CONTEXT, ANSWERS))
        if not self.extracts:
            return found
        if setting == "POSITIVE_COLUMN" and sorted(found) == sorted(contexts + answers):
            return contexts
        return answers if setting == "LABEL_COLUMN" and not found and chosen["POSITIVE_COLUMN"] == contexts else found

    def _alike(self, names):
        found = [column for column in self.names if re.fullmatch(names, str(column).strip().lower())]
        return [column for column in found if column != "id" or "_id" not in found]  # BEIR files have both

    def _describe(self):
        roles = {column: role for role, columns in self.chosen.items() for column in columns}
        self.source.columns = {str(column): roles.get(column, "") for column in self.names}

    def grade(self, values):
        """The grade of a row's passages by LABEL_COLUMN: a whole number from 0, or 0 and 1 by a threshold."""
        if not self.chosen["LABEL_COLUMN"]:
            return 1
        column = self.chosen["LABEL_COLUMN"][0]
        value = values.get(column)
        if self.settings.label_column == "auto" and column in self._alike(ANSWERS):
            return int(bool(_answers(value)))
        if value is None or value == "":
            raise ValueError(f"no label in {column!r}")
        number = number_of(str(value))
        if self.threshold is not None and number is not None:
            return int(number >= self.threshold)
        if number in GRADES:
            return int(number or 0)
        problem = (f"{column!r} holds a value that is no grade (a whole number from 0 to {GRADES[-1]}): set "
                   f"LABEL_COLUMN='{column}>=NUMBER' for the lowest value of a relevant passage, or LABEL_COLUMN=none "
                   "to take all rows as relevant")
        raise (UserError if self.settings.label_column == "auto" else ValueError)(problem)

    def split(self, values):
        """The split of a row by SPLIT_COLUMN: train, dev or test, or "" without such a column."""
        if not self.chosen["SPLIT_COLUMN"]:
            return ""
        column = self.chosen["SPLIT_COLUMN"][0]
        value = str(values.get(column) or "").strip().lower()
        if value not in SPLIT_NAMES:
            raise UserError(f"{column!r} holds {value[:40]!r}, which is none of {', '.join(SPLIT_NAMES)}: correct it, "
                            "or set SPLIT_COLUMN=none to have the queries split at random")
        return SPLIT_NAMES[value]
