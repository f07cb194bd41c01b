"""Text analysis for BM25: tokenisation by script, stop words and stemming by language.

Each run of one script is tokenised by itself, which handles texts such as Chinese with English terms:

    Han, kana, Thai, Lao, Khmer, Burmese    words by ICU's dictionaries (UAX 29): these scripts have no spaces
    Hangul                                  bigrams of syllables, since particles are suffixes (Lucene's CJKBigram)
    all others                              two or more letters, marks, digits or _ in a row, in lower case; single
                                            characters only next to the scripts above

Stop words (bm25s) and stemmer (Snowball) are those of BM25_LANGUAGE. With `auto`, each script with at least SHARE of
the letters has its own language: the one that py3langid detects in most of it, text by text. Latin words in texts of
another script are analysed as English, words of other rare scripts like those of the most frequent script.
"""

import functools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import bm25s.stopwords
import regex
import Stemmer
from icu4py.breakers import WordBreaker

from embedding_finetune.data.normalize import SPACED, UNSPACED, remove_ignored
from embedding_finetune.files import UserError

SHARE = 0.05  # minimum share of the letters for a script to have its own language
SAMPLE = 200  # texts used for language detection, evenly spaced
STRETCH = 100  # letters needed to detect a language
EAST_ASIAN = {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "HALFWIDTH"}  # with Han: "CJK"
STOP_WORDS = {"da": "DANISH", "de": "GERMAN", "en": "EN", "es": "SPANISH", "fr": "FRENCH", "it": "ITALIAN",
              "nl": "DUTCH", "no": "NORWEGIAN", "pt": "PORTUGUESE", "ru": "RUSSIAN", "sv": "SWEDISH", "tr": "TURKISH",
              "zh": "CHINESE"}
VARIANTS = {"ary": "ar", "arz": "ar", "nn": "no", "wuu": "zh", "yue": "zh"}  # share stemmer and stop words

# Unicode compatibility forms: full and half width, positional forms of Arabic letters.
COMPATIBLE = regex.compile(r"[\uff00-\uffef\ufb50-\ufdff\ufe70-\ufeff]+")
BOUND, FREE = rf"[{UNSPACED}\p{{Hangul}}]", rf"[{SPACED}--{UNSPACED}--\p{{Hangul}}]"
TOKEN = regex.compile(rf"(?P<word>{FREE}[{FREE}\p{{M}}]+|(?<={BOUND}){FREE}|{FREE}(?={BOUND}))|"
                      rf"(?P<hangul>\p{{Hangul}}+)|(?P<unspaced>{UNSPACED}[{UNSPACED}\p{{M}}]*)", regex.V1)


@functools.cache
def script(character: str) -> str:
    """Script of a letter from its Unicode name, such as "LATIN"; "" if the character is no letter."""
    name = unicodedata.name(character, "").partition(" ")[0] if character.isalpha() else ""
    return "CJK" if name in EAST_ASIAN else name


def script_title(name: str) -> str:
    """Display name of a script."""
    return name if name == "CJK" else name.capitalize()


def scripts(texts: Iterable[str]) -> dict[str, list[str]]:
    """Script -> its parts of each text; spaces and punctuation belong to the preceding letters."""
    found: dict[str, list[str]] = {}
    for text in texts:
        current, parts = "", {}
        for character in text:
            current = script(character) or current
            parts.setdefault(current, []).append(character)
        for name, part in parts.items():
            if name:
                found.setdefault(name, []).append("".join(part))
    return found


def language_shares(texts: Sequence[str]) -> dict[tuple[str, str], float]:
    """(script, language) -> share of the letters, most frequent first; rare scripts have the language "".

    Short texts are joined until they have STRETCH letters before their language is detected.
    """
    import py3langid  # takes a second to load
    shares: dict[tuple[str, str], float] = defaultdict(float)
    stretches = scripts(texts[::max(1, len(texts) // SAMPLE)])
    total = sum(len(part) for parts in stretches.values() for part in parts)
    for name, parts in stretches.items():
        size = sum(map(len, parts))
        if size < SHARE * total:
            shares[name, "en" if name == "LATIN" else ""] = size / total
            continue
        together = ""
        for place, part in enumerate(parts, start=1):
            together += part + " "
            if len(together) >= STRETCH or place == len(parts):
                shares[name, py3langid.classify(together)[0]] += len(together) / (size + len(parts)) * size / total
                together = ""
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def languages(texts: Sequence[str]) -> dict[str, str]:
    """Script -> language (ISO 639) detected in texts, most frequent script first."""
    found: dict[str, str] = {}
    for name, code in language_shares(texts):
        if code:
            found.setdefault(name, code)
    return found


class Analyzer:
    """Splits texts into terms; `languages` maps scripts to languages, the main script first."""

    @classmethod
    def of(cls, language: str, texts: Sequence[str]) -> Self:
        """The analyzer for a BM25_LANGUAGE; `auto` detects languages in `texts`. Raises UserError if it is unknown."""
        return cls(languages(texts) if language == "auto" else {"ALL SCRIPTS": known_language(language)})

    def __init__(self, languages: dict[str, str]) -> None:
        self.languages = languages
        self.tools = {name: _stemmer(code) for name, code in self.languages.items()}
        self.main = next(iter(self.tools.values()), (None, ()))  # texts without letters have no script
        self.counted: dict[str, str] = {}  # word -> its term, "" for a stop word

    def __str__(self) -> str:
        return ", ".join(f"{code} ({script_title(name)})" for name, code in self.languages.items())

    def __call__(self, texts: Iterable[str]) -> list[list[str]]:
        """Terms of each text: a list of lists."""
        return [[word for word in map(self._count_as, self._cut(text)) if word] for text in texts]

    def _cut(self, text: str) -> Iterator[str]:
        text = unicodedata.normalize("NFC", remove_ignored(text))
        text = COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
        if not {"az", "tr"}.isdisjoint(self.languages.values()):
            text = text.replace("İ", "i").replace("I", "ı")  # in other languages the lower case of I is i
        for match in TOKEN.finditer(text.lower()):
            run, kind = match[0], match.lastgroup
            if kind == "word":
                yield run
            elif kind == "hangul":
                yield from (run[place:place + 2] for place in range(max(1, len(run) - 1)))
            else:
                yield from WordBreaker(run, "en")  # the dictionaries are the same in all locales

    def _count_as(self, word: str) -> str:
        if word not in self.counted:
            stemmer, stop_words = self.tools.get(script(word[0]), self.main)
            self.counted[word] = "" if word in stop_words else stemmer.stemWord(word) if stemmer else word
        return self.counted[word]


def known_language(code: str) -> str:
    """Return the code if it is `none` or a language known to py3langid; raises UserError otherwise."""
    import py3langid
    known = sorted(language for language, _ in py3langid.rank(""))
    if code not in ("none", *known):
        raise UserError(f"BM25_LANGUAGE={code} is unknown: it must be auto, none or one of {', '.join(known)}")
    return code


def _stemmer(language: str) -> tuple[Any, Iterable[str]]:
    """Stemmer (None if there is none) and stop words of a language."""
    language = VARIANTS.get(language, language)
    stop_words = getattr(bm25s.stopwords, f"STOPWORDS_{STOP_WORDS[language]}") if language in STOP_WORDS else ()
    try:
        return Stemmer.Stemmer(language), frozenset(stop_words)
    except KeyError:
        return None, frozenset(stop_words)
