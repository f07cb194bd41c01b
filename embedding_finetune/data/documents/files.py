"""Lines and headings of text, Markdown, HTML and PDF files.

A document is a list of (place, level, text): the line or page number, counted from 1; 1 to 6 for a heading, 0 for other
text; and the text.
"""

import logging
import re
import warnings
from itertools import groupby, pairwise

from embedding_finetune.extras import require
from embedding_finetune.files import one_line

LARGEST = 2**25  # bytes
FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*\n", re.DOTALL)  # of static site generators
NUMERAL = "[一二三四五六七八九十百零〇两0-9]+"
NUMBERED = [re.compile(pattern) for pattern in (  # headings of plain text, by level
    rf"第{NUMERAL}[章篇部编編卷]|(?i:chapter|part|kapitel|chapitre)\s+[0-9IVXLC]+\b",
    rf"第{NUMERAL}[节節]", rf"{NUMERAL}、", rf"[(（]{NUMERAL}[)）]")]
RULE = re.compile(r"={3,}|-{3,}|~{3,}|\^{3,}")
DOTTED = re.compile(r"(\d+(?:\.\d+)+)\.?\s+\S")  # 2.1 Installation
INVISIBLE = ("script", "style", "noscript", "template", "svg", "iframe", "button", "select", "textarea")
DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*,[^\s)\"'<>]*")  # an image written into the text
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
BLOCKS = {*HEADINGS, *("p li dt dd td th caption pre blockquote div section article aside main body header footer form "
                       "figcaption summary details table tr ul ol dl address").split()}


class UnreadableError(Exception):
    """Raised with the reason why a file is not used as a document."""


def read_document(path):
    """(lines, notes) of a document: note -> detail of which encoding was guessed and what was left out.

    Raises UnreadableError.
    """
    form = FORMS[path.suffix.lower()]
    try:
        if not path.is_file():
            raise UnreadableError("not a regular file")  # a pipe, or a broken link
        if path.stat().st_size > LARGEST:
            raise UnreadableError(f"larger than {LARGEST // 2**20} MB")
        if form is _pdf:
            return list(_pdf(path)), {}
        text, encoding = _decode(path.read_bytes())
    except OSError as error:
        raise UnreadableError(error.strerror or "cannot be read") from None
    text, images = DATA_URI.subn("", re.sub(r"\r\n?", "\n", text))
    notes = {f"read as {encoding}": ""} if encoding else {}
    notes |= {"read without the images within the text (data: URIs)": ""} if images else {}
    if form is _html:
        lines, share = _html(text)
        return lines, notes | ({"read without navigation and side texts": f" ({share:.0%} of the text)"}
                               if share >= 0.005 else {})
    return list(form(text)), notes


def _decode(content):
    try:
        text, guessed = content.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        best = require("charset_normalizer").from_bytes(content).best()
        text, guessed = (str(best), best.encoding) if best else ("\0", "")
    if "\0" in text:
        raise UnreadableError("not text")
    return text, guessed


def _plain(text):
    """Lines of plain text; headings are underlined by =, -, ~ or ^, or numbered: 2.1 Setup, Chapter 3, 第一章, 第二节, 三、."""
    underline = 0  # number of the line that underlines a heading
    for number, (line, below) in enumerate(pairwise([*text.split("\n"), ""]), start=1):
        title, rule = line.strip(), below.strip()
        if RULE.fullmatch(rule) and title and not RULE.fullmatch(title) and len(title) <= 2 * len(rule):
            underline = number + 1
            yield number, 1 + "=-~^".index(rule[0]), title
        elif number != underline:
            yield number, _numbered(title), "" if RULE.fullmatch(title) else line


def _numbered(title):
    """The level of a numbered heading; 0 for other lines, for long lines and for sentences."""
    if len(title) > 60 or title.endswith(tuple("。！？；，：.!?;,:")):
        return 0
    dotted = DOTTED.match(title)
    if dotted:
        return min(1 + dotted[1].count("."), 6)
    return next((level for level, pattern in enumerate(NUMBERED, start=1) if pattern.match(title)), 0)


def _markdown(text):
    """Lines of Markdown; headings follow CommonMark, so those in code do not count."""
    text = FRONT_MATTER.sub(lambda head: "\n" * head[0].count("\n"), text)
    headings, end = {}, 0
    for token, inline in pairwise(require("markdown_it").MarkdownIt().parse(text)):
        if token.type == "heading_open" and token.level == 0:
            title = "".join(" " if child.type.endswith("break") else child.content for child in inline.children)
            headings[token.map[0]] = token.map[1], int(token.tag[1]), title
    for number, line in enumerate(text.split("\n")):
        if number in headings:
            end, level, title = headings[number]
            yield number + 1, level, title
        elif number >= end:
            yield number + 1, 0, line


def _html(text):
    """(lines, share of the text that is left out) of a page.

    The text is that of all <main>, if there is any, without navigation, and without side texts unless they are within
    <main> or <article> or all there is. <title> is the heading if there is no <h1>.
    """
    with warnings.catch_warnings(action="ignore"):  # bs4 warns that XHTML looks like XML
        soup = require("bs4").BeautifulSoup(text, "html.parser")
    for tag in soup(INVISIBLE):
        tag.decompose()
    for tag in soup("br"):
        tag.replace_with("\n")
    whole = soup.body or soup
    pieces = [piece for piece in whole.strings if not piece.find_parent("nav")]
    for wanted in (lambda piece: piece.find_parent("main"), lambda piece: not _is_side_text(piece)):
        kept = [piece for piece in pieces if wanted(piece)]
        pieces = kept if any(map(str.strip, kept)) else pieces
    size, content = (sum(len(piece.strip()) for piece in texts) for texts in (whole.strings, pieces))
    lines = list(_blocks(whole, pieces))
    if soup.title and not any(level == 1 for _, level, _ in lines):
        lines.insert(0, (1, 1, soup.title.get_text()))
    return lines, 1 - content / size if size else 0.0


def _is_side_text(piece):
    """Whether a piece of text is in a footer or an aside, and that not in the content."""
    around = piece.find_parent(["footer", "aside"])
    return around is not None and not around.find_parent(["main", "article"])


def _blocks(root, pieces):
    """The lines of these pieces of text, those of a block joined."""
    found = ((next((tag for tag in piece.parents if tag.name in BLOCKS), root), piece) for piece in pieces)
    for _, same in groupby(found, key=lambda piece: id(piece[0])):
        blocks, texts = zip(*same)
        block, joined = blocks[0], "".join(texts)
        level = int(block.name[1]) if block.name in HEADINGS else 0
        if joined.strip():
            yield block.sourceline or 1, level, joined if block.name == "pre" else " ".join(joined.split())


def _pdf(path):
    """Lines of the pages of a PDF; its bookmarks are the headings, since a PDF marks no others."""
    pypdf = require("pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        document = pypdf.PdfReader(path)
        bookmarks = list(_bookmarks(document, document.outline))
        for number, page in enumerate(document.pages):
            yield from ((number + 1, level, title) for at, level, title in bookmarks if at == number)
            yield from ((number + 1, 0, line) for line in page.extract_text().split("\n"))
    except OSError:
        raise
    except Exception as error:  # pypdf raises many kinds of errors for broken files
        raise UnreadableError(f"PDF that cannot be read ({one_line(error)[:80]})") from None


def _bookmarks(document, outline, level=1):
    for entry in outline:
        if isinstance(entry, list):
            yield from _bookmarks(document, entry, min(level + 1, 6))
        else:
            yield document.get_destination_page_number(entry), level, entry.title or ""


FORMS = {".txt": _plain, ".text": _plain, ".rst": _plain, ".md": _markdown, ".markdown": _markdown, ".html": _html,
         ".htm": _html, ".xhtml": _html, ".pdf": _pdf}
