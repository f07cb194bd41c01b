"""Documents without queries: folders of text, Markdown, HTML and PDF files as passages with pseudo-queries.

A section is the text under one heading. `semantic-text-splitter` splits it into passages of at most CHUNK_TOKENS tokens
of the base model, preferably at paragraphs, then lines, sentences (Unicode rules), words. A passage starts with the
titles above it. Pseudo-queries of a passage:

    title   the titles above its section (AugTriever, Meng et al. 2023, arXiv 2212.08841)
    span    a sequence of its words (cropping: Contriever, Izacard et al. 2022, arXiv 2112.09118)

Both occur verbatim in the passage, so the training removes them from it nine times in ten (batches.QUERY_REMOVAL_RATE).
DOCUMENT_QUERIES are human-written queries; if there are any, they form the test split.
"""

import functools
import os
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.data.collection import BEIR_FILES
from embedding_finetune.data.documents.files import FORMS, UnreadableError, read_document
from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX, WORD, clean_text, normalize, passage_id, word_tokens
from embedding_finetune.data.readers import Row, reader
from embedding_finetune.data.readers.formats import open_table
from embedding_finetune.extras import require
from embedding_finetune.files import UserError
from embedding_finetune.hub import default_length, load, model_path, published_lengths
from embedding_finetune.setting_checks import AUTO
from embedding_finetune.settings import path_of

SPAN_WORDS = 4, 32  # length of a span, in passages of at least twice the minimum; a Chinese character is a word
TITLED = 8  # maximum passages of a section whose title is a pseudo-query
WINDOW = 20_000  # characters split at once: the splitter's time is quadratic beyond
PLACE = ("file", "heading", "text")  # columns of DOCUMENT_QUERIES that say where the answer is
HUMAN_WRITTEN = ("query", *PLACE, "id")
NAMED = 5  # files that a message lists


@dataclass(frozen=True)
class Passage:
    """A chunk of a section: `titles` are the headings above it, `body` is its text without them."""

    file: str
    section: int
    titles: tuple
    body: str
    source: str  # file, lines or page, titles

    @property
    def text(self):
        return f"{' > '.join(self.titles)}\n{self.body}".strip()


@reader("documents")
def read_documents(name, settings):
    """Rows of the folder `name`: DOCUMENT_QUERIES, all passages, then pseudo-queries, sampled with a seed to
    MAX_QUERIES.

    Prints what was read and what was left out. Raises UserError when there is no text, or when a human-written query
    has no answer.
    """
    passages = split_documents(name, settings)
    human_written = list(_human_written(settings, passages)) if settings.document_queries else []
    pseudo = list(pseudo_queries(passages, settings.seed, {normalize(row.query or "") for row in human_written}))
    kinds = Counter(str(row.id).split("-")[1] for row in pseudo)
    print(f"{len(passages)} passages of {len({passage.file for passage in passages})} files; queries: {kinds['title']} "
          f"titles, {kinds['span']} spans, {len(human_written)} human-written")
    if settings.max_queries:
        room = min(max(settings.max_queries - len(human_written), 0), len(pseudo))
        pseudo = [pseudo[number] for number in sorted(random.Random(settings.seed).sample(range(len(pseudo)), room))]
    yield from human_written
    yield from (Row(None, [passage.text], source=passage.source) for passage in passages)
    yield from pseudo


def split_documents(folder, settings):
    """The Passages of all documents below a folder, in the order of file names."""
    folder, left_out, said, found = path_of(folder), defaultdict(list), defaultdict(list), []
    chunker = Chunker(settings)
    for path in tqdm(list(_files(folder, left_out)), desc="reading documents", unit="file"):
        name = clean_text(str(path.relative_to(folder)))
        try:
            lines, notes = read_document(path)
        except UnreadableError as error:
            left_out[str(error)].append(name)
            continue
        passages = list(_passages(name, lines, chunker, "page" if path.suffix.lower() == ".pdf" else "line"))
        found += passages
        if not passages:
            left_out["no text"].append(name)
        for note, detail in notes.items() if passages else ():
            said[note].append(name + detail)
    for reason, names in (left_out | said).items():
        more = ", ..." if len(names) > NAMED else ""
        print(f"{len(names)} {'left out, ' if reason in left_out else ''}{reason}: {', '.join(names[:NAMED])}{more}")
    if not found:
        raise UserError(f"{folder} has no document with text in it; documents are {', '.join(FORMS)}; a folder in "
                        f"BEIR's layout would have {', '.join(BEIR_FILES)} and qrels/")
    return found


def _files(folder, left_out):
    """The documents below a folder, without hidden files and linked folders (which may form a cycle)."""
    def unreadable(error):
        left_out["folder cannot be read"].append(clean_text(str(error.filename)))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        for name in sorted([*folders, *names]):
            path = folder / root / name
            reason = ("hidden" if name.startswith(".") else
                      "linked folder" if name in folders and path.is_symlink() else
                      f"not {', '.join(FORMS)}" if name in names and path.suffix.lower() not in FORMS else "")
            if reason:
                left_out[reason].append(clean_text(str(path.relative_to(folder))))
            elif name in names:
                yield path
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _passages(name, lines, chunker, unit):
    """The passages of a document, given as lines (place, level, text); level 1 to 6 is a heading, 0 is text.

    A heading without text below it is treated as text of the enclosing section, so no text is lost.
    """
    below, kept = 1, []  # level of the next non-blank line
    for place, level, text in reversed(lines):
        text = clean_text(text) if level else clean_text(f"|{text}|")[1:-1]
        kept.append((place, 0 if level and 0 < below <= level else level, text))
        below = level if text.strip() else below
    titles, sections = {}, [((), [])]
    for place, level, text in reversed(kept):
        if level:
            titles = {above: title for above, title in titles.items() if above < level}
            titles[level] = " ".join(text.split())
            sections.append((tuple(filter(None, titles.values())), []))
        else:
            sections[-1][1].append((place, text))
    for number, (above, body) in enumerate(sections):
        starts = np.cumsum([0, *(len(text) + 1 for _, text in body)])
        for start, chunk in chunker(" > ".join(above), "\n".join(text for _, text in body)):
            first, last = (body[np.searchsorted(starts, at, "right") - 1][0] for at in (start, start + len(chunk) - 1))
            where = f"{unit}s {first}-{last}" if last > first else f"{unit} {first}"
            yield Passage(name, number, above, chunk, ", ".join(filter(None, [name, where, " > ".join(above)])))


class Chunker:
    """Splits the text of a section: yields (offset, text) chunks that fit CHUNK_TOKENS together with the titles."""

    def __init__(self, settings):
        name, self.size, self.overlap = model_path(settings.base_model), chunk_tokens(settings), settings.chunk_overlap
        if self.overlap * 2 > self.size:
            raise UserError(f"CHUNK_OVERLAP={self.overlap} is more than half of the {self.size} tokens of a passage")
        tokenizer = load("AutoTokenizer", name, settings.trusts(settings.base_model, name))
        if not tokenizer.is_fast:
            raise UserError(f"{name} has no fast tokenizer, which splitting documents needs")
        self.tokenizer = tokenizer.backend_tokenizer
        self.tokenizer.no_truncation()  # truncation would limit the token count
        self.tokenizer.no_padding()
        self.splitter = functools.cache(self._splitter)  # by the room for a text

    def __call__(self, title, text):
        room = self.size - len(self.tokenizer.encode(title).ids)  # includes special tokens
        splitter = self.splitter(max(room, self.size // 2))  # longer titles cost the passage its end
        for window in re.finditer(rf"(?s).{{1,{WINDOW}}}(?:\n|\Z)|.{{{WINDOW}}}", text):
            for start, chunk in splitter.chunk_indices(window[0]):
                yield window.start() + start, chunk

    def _splitter(self, room):
        splitter = require("semantic_text_splitter").TextSplitter
        return splitter.from_huggingface_tokenizer(self.tokenizer, room, min(self.overlap, room // 2))


def chunk_tokens(settings):
    """Maximum tokens per passage: CHUNK_TOKENS, or PASSAGE_MAX_LEN, whose `auto` is the limit of the base model.

    Raises UserError when CHUNK_TOKENS is larger, or when the limit cannot be read.
    """
    limit = settings.passage_max_len
    if limit == AUTO:
        name = model_path(settings.base_model)
        trusted = settings.trusts(settings.base_model, name)
        limit = published_lengths(name, trusted).get("passage_max_len") or default_length(name, trusted)
    if settings.chunk_tokens > limit:
        raise UserError(f"CHUNK_TOKENS={settings.chunk_tokens} is more than the {limit} tokens that the model reads of "
                        "a passage (PASSAGE_MAX_LEN): lower the one or raise the other")
    return settings.chunk_tokens or limit


def passage_size(settings):
    """The size of a passage in words; it identifies how documents are split."""
    return f"{chunk_tokens(settings)} tokens of {settings.base_model}"


def pseudo_queries(passages, seed, taken=()):
    """Rows of the titles that belong to a single section, and of a span of each passage; texts in `taken` are skipped.

    All passages that contain a span are its answers, including an overlapping next passage: passages that share a
    pseudo-query share their split.
    """
    sections = defaultdict(list)
    for passage in passages:
        sections[passage.file, passage.section].append(passage)
    titles = defaultdict(list)
    for section in sections.values():
        titles[" ".join(section[0].titles)].append(section)
    for title, [section, *others] in titles.items():
        if not others and len(section) <= TITLED and len(word_tokens(title)) > 1 and normalize(title) not in taken:
            yield _row("title", title, section)
    for section in sections.values():
        for number, passage in enumerate(section):
            text = random_span(passage.body, random.Random(f"{seed} {passage_id(passage.text)}"))
            if text and normalize(text) not in taken:
                neighbours = section[max(number - 1, 0):number + 2]
                yield _row("span", text, [other for other in neighbours if normalize(text) in normalize(other.body)])


def _row(kind, query, answers):
    query = " ".join(query.split())
    return Row(query, [passage.text for passage in answers], f"{PSEUDO_QUERY_PREFIX}{kind}-{passage_id(query)}")


def random_span(text, generator):
    """A random sequence of words of a text, at most half of it, or "" if it is too short; `generator` is a
    random.Random.
    """
    found, (shortest, longest) = list(WORD.finditer(text)), SPAN_WORDS
    if len(found) < 2 * shortest:
        return ""
    length = generator.randint(shortest, min(longest, len(found) // 2))
    first = generator.randrange(len(found) - length + 1)
    return text[found[first].start():found[first + length - 1].end()]


def _human_written(settings, passages):
    """Rows of DOCUMENT_QUERIES: `query`, its answer by `file`, `heading` and `text` (all given ones must match),
    optionally `id`.
    """
    texts, path = [normalize(passage.text) for passage in passages], path_of(settings.document_queries)
    if not path.is_file():
        raise UserError(f"DOCUMENT_QUERIES={settings.document_queries} does not exist or is not a file")
    table = open_table(path)
    if unused := [column for column in table.columns if column not in HUMAN_WRITTEN]:
        print(f"{path}: not used: {', '.join(map(repr, unused))}")
    for number, values in table.records(table.columns):
        where = f"{path}, {table.unit} {number}"
        if isinstance(values, str):
            raise UserError(f"{where}: {values}")
        row = {key: str(values[key]).strip() for key in HUMAN_WRITTEN if values.get(key) is not None}
        wanted = {key: normalize(row[key]) for key in PLACE if row.get(key)}
        if not wanted or not row.get("query") or any(isinstance(values[key], list | dict) for key in row):
            raise UserError(f"{where}: needs a `query`, and the `file`, `heading` or `text` that answers it, as texts")
        answers = [passage for passage, text in zip(passages, texts) if _fits(passage, text, **wanted)]
        if not answers:
            given = ", ".join(f"{key} {row[key]!r}" for key in wanted)
            raise UserError(f"{where}: no passage has {given}; a text must lie within one passage")
        yield Row(row["query"], [passage.text for passage in answers], row.get("id") or None, where=where)


def _fits(passage, normalized, file="", heading="", text=""):
    """Whether a passage matches: `file` is the end of its path, `heading` one of its titles (or all, joined by ` > `),
    `text` a part of its `normalized` text.
    """
    headings = map(normalize, (*passage.titles, " > ".join(passage.titles)))
    return (f"/{normalize(passage.file)}".endswith(f"/{file}" if file else "") and text in normalized
            and (not heading or heading in headings))
