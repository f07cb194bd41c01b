"""JSON and JSON Lines files as tables; datasets published as one JSON object: rows under a key, SQuAD, LlamaIndex."""

import json
import re
from itertools import islice
from pathlib import Path

from embedding_finetune.data.readers import Row, Table
from embedding_finetune.data.readers.files import encoding_of, first_line, is_text, not_utf8, open_text, readable
from embedding_finetune.files import UserError

PEEK = 100  # leading JSON rows whose keys are the columns to begin with
KINDS = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
LLAMA_INDEX = {"queries": "query ids and texts", "corpus": "passage ids and texts", "relevant_docs": "judgments"}


def open_json(path: Path) -> Table:
    """The table in a JSON or JSON Lines file; an object that holds a dataset is unnested."""
    with open_text(path) as file:
        _, first = first_line(file)
        single = not any(line.strip() for line in file)
    start, whole, value = first.lstrip()[:1], False, None
    try:
        value = json.loads(first) if start == "{" else None
    except (ValueError, RecursionError):
        whole = start == "{" and _indented(path)
    whole = whole or start == "[" and (single or not re.fullmatch(r"\s*\[\s*[^{].*\]\s*", first, re.DOTALL))
    how = {"format": "JSON" if whole else "JSON Lines", "encoding": encoding_of(path).removesuffix("-sig")}
    if value is None and whole and start == "{":
        values = list(islice(_values(path), 2))
        value, single = values[0][1], len(values) == 1
    if single and isinstance(value, dict) and (found := _unnested(path, value)):
        layout, rows, roles = found
        columns = list(roles or dict.fromkeys(key for row in rows for key in row if isinstance(row, dict)))
        return Table(str(path), columns, lambda wanted: enumerate(rows, start=1), "row",
                     how | {"format": "JSON", "layout": layout}, roles)

    def records(wanted):
        with readable(path):
            if whole:
                yield from _values(path)
            else:
                with open_text(path) as file:
                    yield from _lines(file)

    columns = (key for _, values in islice(records(()), PEEK) if isinstance(values, dict) for key in values)
    return Table(str(path), list(dict.fromkeys(columns)), records, how=how)


def _indented(path):
    """Whether a file begins with a JSON object over several lines."""
    try:
        return isinstance(next(iter(_values(path)))[1], dict)
    except UserError:
        return False


def _lines(file):
    """(line number, object) of a JSON Lines file, or (line number, problem)."""
    for number, line in enumerate(file, start=1):
        if not is_text(line):
            yield number, "not UTF-8: save the file as UTF-8"
        elif line.strip():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, _why_not_json(line, error)
            else:
                yield number, values if isinstance(values, dict) else _not_object(values)


def _not_object(value):
    return f"{KINDS.get(type(value), 'null')}, not a JSON object"


def _why_not_json(line, error):
    if re.match(r"\s*\{\s*'", line):
        return "a dictionary of Python, not JSON: write it by json.dumps"
    return f"not valid JSON ({getattr(error, 'msg', 'nested too deeply, or a number too long')})"


def _values(path):
    """(line, object) for each element of a JSON list, or of a sequence of JSON values; (line, problem) for others.

    They are decoded one by one: decoding all at once takes many times the file's size in memory.
    """
    with open_text(path) as file:
        text = file.read()
    decode, line, counted, mark = json.JSONDecoder().raw_decode, 1, 0, re.compile(r"[^\s,]")
    inside = text.lstrip()[:1] == "["
    place = text.index("[") + 1 if inside else 0
    while found := mark.search(text, place):
        place = found.start()
        line, counted = line + text.count("\n", counted, place), place
        if inside and text[place] == "]":
            if text[place + 1:].strip():
                raise UserError(f"{path}, line {line}: more text after the list ends: write one object per line")
            return
        try:
            values, place = decode(text, place)
        except (ValueError, RecursionError) as error:
            at = line + text.count("\n", counted, getattr(error, "pos", counted))
            raise UserError(f"{path}, line {at}: {'not valid JSON' if is_text(text) else not_utf8(path)} "
                            f"({getattr(error, 'msg', 'nested too deeply')}); fix it, or write one object per line"
                            ) from None
        yield line, values if isinstance(values, dict) else _not_object(values)
    if inside:
        raise UserError(f"{path} ends within its list: the file is truncated")


def _unnested(path, value):
    """(layout, rows, roles of the keys if the layout fixes them) of a JSON object that holds a dataset.

    None if the object is itself a row. Rows are dicts, or Rows if the roles are fixed. Raises UserError when the object
    holds several lists of rows, or is not what its keys promise.
    """
    try:
        if value.keys() >= LLAMA_INDEX.keys():
            return "LlamaIndex", list(_llama_index(**{key: value[key] for key in LLAMA_INDEX})), {
                key: LLAMA_INDEX.get(key, "") for key in value}
        lists = [key for key, rows in value.items() if isinstance(rows, list) and rows
                 and all(isinstance(row, dict) for row in rows)]
        if len(lists) > 1:
            raise UserError(f"{path} holds several lists of rows ({', '.join(lists)}): write the one to read to a file "
                            "of its own")
        if not lists:
            return None
        rows, others = value[lists[0]], [key for key in value if key != lists[0]]
        layout = f"rows under {lists[0]!r}" + (f" (not used: {', '.join(others)})" if others else "")
        if "paragraphs" in rows[0]:
            layout, rows = f"SQuAD (not used: {', '.join(['answers', *others])})", list(_squad(rows))
        return layout, rows, None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} looks like a dataset of SQuAD or LlamaIndex, but is none ({error!r:.200})") from None


def _squad(articles):
    """Rows of SQuAD: a question, its paragraph, and label 0 if the paragraph does not answer it (SQuAD 2.0)."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {"id": question["id"], "question": question["question"], "context": paragraph["context"],
                       "source": article.get("title"), "label": int(not question.get("is_impossible", False))}


def _llama_index(queries, corpus, relevant_docs):
    """Rows of LlamaIndex's EmbeddingQAFinetuneDataset: texts by id, and the ids of the relevant passages by query."""
    if not all(isinstance(text, str) for text in (*queries.values(), *corpus.values())):
        raise ValueError("a text is no text")
    yield from (Row(None, [text], identity) for identity, text in corpus.items())
    for identity, text in queries.items():
        judged = relevant_docs.get(identity, [])
        missing = [passage for passage in judged if passage not in corpus]
        problem = (f"relevant_docs names {missing[0]!r}, which the corpus lacks" if missing else
                   "no relevant passage" if not judged else "")
        yield Row(text, [corpus[passage] for passage in judged if passage in corpus], identity, problem=problem)
