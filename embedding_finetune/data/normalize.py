"""When two texts count as the same."""

import hashlib
import unicodedata

import regex

PSEUDO_QUERY_PREFIX = "pseudo-"  # how the ids of queries begin that are made from passages (see documents)
# Scripts that put no spaces between words: Han, kana, and those whose lines break by dictionary (UAX 14's class SA:
# Thai, Lao, Khmer, Burmese ..). In the others a word goes on over marks: Hindi writes its vowels with them.
UNSPACED, SPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{LB=SA}]", r"[\p{L}\p{N}_]"
BETWEEN_WORDS = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")}
WORD = regex.compile(rf"{UNSPACED}|[{SPACED}--{UNSPACED}][[{SPACED}\p{{M}}]--{UNSPACED}]*", regex.V1)


def clean_text(text):
    """A text without white space around it; half a surrogate pair, which no file can hold, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def normalize(text):
    """The form in which two texts count as the same: Unicode NFKC, case folded, white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def passage_id(text):
    """An id that depends on nothing but the normalised text, so that it is the same in every file and every run."""
    return "p" + hashlib.sha256(normalize(text).encode()).hexdigest()[:16]


def query_id(text):
    """The id of a query whose source gives none."""
    return "q" + hashlib.sha256(normalize(text).encode()).hexdigest()[:16]


def remove_query(text, query):
    """A text without the query's words where they stand in it in a row, be there line breaks or > between them."""
    around = regex.split(r"[\s>]+".join(map(regex.escape, query.split())), text, maxsplit=1)
    return " ".join(map(str.strip, around)).strip() or text


def word_tokens(text):
    """The words of a text, lower-cased, without punctuation; of a script without spaces each character is one.

    They say whether texts are alike and how long they are, which needs no dictionary (for a search, see words.Words).
    """
    if text.isascii():  # the same, four times as fast
        return text.lower().translate(BETWEEN_WORDS).split()
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())
