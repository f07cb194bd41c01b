"""Documents without queries: a folder of text, Markdown, HTML and PDF files, as passages and pseudo-queries for them.

A section is what stands under one heading. Its text is cut into passages of at most CHUNK_TOKENS tokens of the base
model by `semantic-text-splitter`: at paragraphs, else at lines, sentences (Unicode's, of any language), words. A
passage begins with the titles above it. For each there is a pseudo-query:

    title   the titles above a section ask for its passages (AugTriever, Meng et al. 2023, arXiv 2212.08841)
    span    a run of words of a passage asks for it (cropping: Contriever, Izacard et al. 2022, arXiv 2112.09118)

Both stand in their passage word for word, so the training takes them out of it nine times in ten (batches.HIDDEN).
QUERIES are queries that people wrote. Where there are any they are the test part, and the only proof.
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
from embedding_finetune.data.documents.files import FORMS, Unreadable, read_document
from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX, WORD, clean_text, normalize, passage_id, word_tokens
from embedding_finetune.data.readers import Row, reader
from embedding_finetune.data.readers.tables import read_records
from embedding_finetune.files import UserError
from embedding_finetune.hub import load, model_path
from embedding_finetune.settings import path_of

SPAN_WORDS = 4, 32  # of a passage that has at least twice the lower number; a Chinese character counts as a word
TITLED = 8  # passages: what a longer section is called asks for none of them
WINDOW = 20_000  # characters that are split at once: beyond, the splitter's time grows with the square
NAMED = 5  # files that are named of those left out


@dataclass(frozen=True)
class Passage:
    """A stretch of a section: `titles` are those above it, `body` is its text without them."""

    file: str
    section: int
    titles: tuple
    body: str
    source: str  # file, lines or page, titles

    @property
    def text(self):
        return f"{' > '.join(self.titles)}\n{self.body}".strip()


@reader("documents")
def read_documents(settings):
    """Rows of the folder DATASET: QUERIES, all passages, then pseudo-queries, of which MAX_QUERIES is a seeded sample.

    Prints what was read and what was left out. Raises UserError when there is no text, or when a query of QUERIES has
    no answer.
    """
    passages = split_documents(settings)
    written = list(_human_written(settings, passages)) if settings.document_queries else []
    pseudo = list(pseudo_queries(passages, settings.seed, {normalize(row.query) for row in written}))
    kinds = Counter(row.id.split("-")[1] for row in pseudo)
    print(f"{len(passages)} passages of {len({passage.file for passage in passages})} files; queries: {kinds['title']} "
          f"titles, {kinds['span']} spans, {len(written)} written by hand")
    if settings.max_queries:
        room = min(max(settings.max_queries - len(written), 0), len(pseudo))
        pseudo = [pseudo[number] for number in sorted(random.Random(settings.seed).sample(range(len(pseudo)), room))]
    yield from written
    yield from (Row(None, [passage.text], source=passage.source) for passage in passages)
    yield from pseudo


def split_documents(settings):
    """The Passages of all documents below DATASET, in the order of the files' names."""
    folder, left_out, guessed, found = path_of(settings.dataset), defaultdict(list), defaultdict(list), []
    cut = Chunker(settings)
    for path in tqdm(list(_files(folder, left_out)), desc="reading documents", unit="file"):
        name = clean_text(str(path.relative_to(folder)))
        try:
            lines, encoding = read_document(path)
        except Unreadable as error:
            left_out[str(error)].append(name)
            continue
        passages = list(_passages(name, lines, cut, "page" if path.suffix.lower() == ".pdf" else "line"))
        found += passages
        if not passages:
            left_out["no text"].append(name)
        elif encoding:
            guessed[f"read as {encoding}"].append(name)
    for reason, names in (left_out | guessed).items():
        more = ", ..." if len(names) > NAMED else ""
        print(f"{len(names)} {'left out, ' if reason in left_out else ''}{reason}: {', '.join(names[:NAMED])}{more}")
    if not found:
        raise UserError(f"{folder} has no document with text in it; documents are {', '.join(FORMS)}; a folder in "
                        f"BEIR's layout would have {', '.join(BEIR_FILES)} and qrels/")
    return found


def _files(folder, left_out):
    """The documents below a folder; hidden files and linked folders (which may go in a circle) are left out."""
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


def _passages(name, lines, cut, unit):
    """The passages of a document, given as lines (place, level, text); level 1 to 6 is a heading, 0 none.

    A heading with nothing below it is a line of the section it stands in: no text is lost.
    """
    below, kept = 1, []  # the level of the next line that is not blank
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
        for start, chunk in cut(" > ".join(above), "\n".join(text for _, text in body)):
            first, last = (body[np.searchsorted(starts, at, "right") - 1][0] for at in (start, start + len(chunk) - 1))
            where = f"{unit}s {first}-{last}" if last > first else f"{unit} {first}"
            yield Passage(name, number, above, chunk, ", ".join(filter(None, [name, where, " > ".join(above)])))


class Chunker:
    """Cuts a section's text: yields (offset, text), each of which fits CHUNK_TOKENS together with its titles."""

    def __init__(self, settings):
        name, self.size, self.overlap = model_path(settings.base_model), chunk_tokens(settings), settings.chunk_overlap
        if self.overlap * 2 > self.size:
            raise UserError(f"CHUNK_OVERLAP={self.overlap} is more than half of the {self.size} tokens of a passage")
        tokenizer = load("AutoTokenizer", name, settings.trusts(settings.base_model, name))
        if not tokenizer.is_fast:
            raise UserError(f"{name} has a tokenizer in Python alone, with which documents cannot be split")
        self.tokenizer = tokenizer.backend_tokenizer
        self.tokenizer.no_truncation()  # which would end the counting, too
        self.tokenizer.no_padding()

    def __call__(self, title, text):
        room = self.size - len(self.tokenizer.encode(title).ids)  # which counts the tokens around a text, too
        splitter = self.splitter(max(room, self.size // 2))  # titles longer than half a passage cost it its end
        for window in re.finditer(rf"(?s).{{1,{WINDOW}}}(?:\n|\Z)|.{{{WINDOW}}}", text):
            for start, chunk in splitter.chunk_indices(window[0]):
                yield window.start() + start, chunk

    @functools.cache
    def splitter(self, room):
        from semantic_text_splitter import TextSplitter
        return TextSplitter.from_huggingface_tokenizer(self.tokenizer, room, min(self.overlap, room // 2))


def chunk_tokens(settings):
    """The tokens of a passage: CHUNK_TOKENS, or all that the model reads of one. Raises UserError when it is more."""
    if settings.chunk_tokens > settings.passage_max_len:
        raise UserError(f"CHUNK_TOKENS={settings.chunk_tokens} is more than the {settings.passage_max_len} tokens that "
                        "the model reads of a passage (PASSAGE_MAX_LEN): lower the one or raise the other")
    return settings.chunk_tokens or settings.passage_max_len


def pseudo_queries(passages, seed, taken=()):
    """Rows of the titles that stand above one section alone, and of a span of each passage; none of the `taken` texts.

    What a span or title occurs in is its answer, too, be it the next passage that overlaps with it: passages that share
    a pseudo-query share their part of the split.
    """
    sections = defaultdict(list)
    for passage in passages:
        sections[passage.file, passage.section].append(passage)
    titles = defaultdict(list)
    for own in sections.values():
        titles[" ".join(own[0].titles)].append(own)
    for title, owners in titles.items():
        [own, *others] = owners
        if not others and len(own) <= TITLED and len(word_tokens(title)) > 1 and normalize(title) not in taken:
            yield _row("title", title, own)
    for own in sections.values():
        for number, passage in enumerate(own):
            text = random_span(passage.body, random.Random(f"{seed} {passage_id(passage.text)}"))
            if text and normalize(text) not in taken:
                near = own[max(number - 1, 0):number + 2]
                yield _row("span", text, [other for other in near if normalize(text) in normalize(other.body)])


def _row(kind, query, answers):
    query = " ".join(query.split())
    return Row(query, [passage.text for passage in answers], f"{PSEUDO_QUERY_PREFIX}{kind}-{passage_id(query)}")


def random_span(text, generator):
    """A run of words of a text, at most half of it, or "" where it is too short. `generator`: a random.Random."""
    found, (shortest, longest) = list(WORD.finditer(text)), SPAN_WORDS
    if len(found) < 2 * shortest:
        return ""
    length = generator.randint(shortest, min(longest, len(found) // 2))
    first = generator.randrange(len(found) - length + 1)
    return text[found[first].start():found[first + length - 1].end()]


def _human_written(settings, passages):
    """Rows of QUERIES: `query`, its answer by `file`, `heading` and `text` (all given ones must fit), maybe `id`."""
    texts, path = [normalize(passage.text) for passage in passages], path_of(settings.document_queries)
    if not path.is_file():
        raise UserError(f"DOCUMENT_QUERIES={settings.document_queries} does not exist or is no file")
    for where, row in read_records(path, ("query", "file", "heading", "text", "id")):
        row = {key: str(value).strip() for key, value in row.items() if value is not None and str(value).strip()}
        wanted = {key: normalize(row[key]) for key in ("file", "heading", "text") if key in row}
        if not wanted or "query" not in row:
            raise UserError(f"{where}: needs a `query`, and the `file`, `heading` or `text` that answers it")
        answers = [passage for passage, text in zip(passages, texts) if _fits(passage, text, **wanted)]
        if not answers:
            said = ", ".join(f"{key} {row[key]!r}" for key in wanted)
            raise UserError(f"{where}: no passage has {said}; a text must lie within one passage")
        yield Row(row["query"], [passage.text for passage in answers], row.get("id"), where=where)


def _fits(passage, normal, file="", heading="", text=""):
    """A file by the end of its path, a heading of any level, or all with ` > ` between; a text as part of `normal`."""
    headings = map(normalize, (*passage.titles, " > ".join(passage.titles)))
    return (f"/{normalize(passage.file)}".endswith(f"/{file}" if file else "") and text in normal
            and (not heading or heading in headings))
