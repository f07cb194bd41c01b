"""Text normalization, ids of texts, and word tokenization."""

import hashlib
import unicodedata

import regex

PSEUDO_QUERY_PREFIX = "pseudo-"  # prefix of the ids of queries generated from passages (see documents)
# Scripts without spaces between words: Han, kana, and those with dictionary-based line breaks (class SA of UAX 14:
# Thai, Lao, Khmer, Burmese ..). In other scripts a word includes combining marks, such as the vowels of Hindi.
UNSPACED, SPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{LB=SA}]", r"[\p{L}\p{N}_]"
BETWEEN_WORDS = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")}
WORD = regex.compile(rf"{UNSPACED}|[{SPACED}--{UNSPACED}][[{SPACED}\p{{M}}]--{UNSPACED}]*", regex.V1)


def clean_text(text):
    """Strip a text; unpaired surrogates, which cannot be encoded in UTF-8, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def normalize(text):
    """The form in which texts are compared: Unicode NFKC, case-folded, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def passage_id(text):
    """An id derived from the normalized text alone, hence the same in every file and every run."""
    return "p" + hashlib.sha256(normalize(text).encode()).hexdigest()[:16]


def query_id(text):
    """The id of a query whose source provides none."""
    return "q" + hashlib.sha256(normalize(text).encode()).hexdigest()[:16]


def remove_query(text, query):
    """Remove the first occurrence of the query from a text; its words may be separated by line breaks or `>`."""
    around = regex.split(r"[\s>]+".join(map(regex.escape, query.split())), text, maxsplit=1)
    return " ".join(map(str.strip, around)).strip() or text


def word_tokens(text):
    """The words of a text, lower-cased, without punctuation; in scripts without spaces each character is a word.

    Used for near-duplicates and lengths, which need no dictionary; search uses retrieval.analyzer.
    """
    if text.isascii():  # same result, four times as fast
        return text.lower().translate(BETWEEN_WORDS).split()
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())
