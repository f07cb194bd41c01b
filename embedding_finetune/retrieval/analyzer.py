"""The words of a text as BM25 counts them: cut by script, stemmed and freed of stop words by language.

A text is cut run by run, so that a Chinese text with English terms gets both:

    Han, kana, Thai, Lao, Khmer, Burmese    words by ICU's dictionaries (UAX 29): these scripts have no spaces
    Hangul                                  pairs of syllables: particles cling to a Korean word (Lucene's CJKBigram)
    all others                              two or more letters, marks, digits or _ in a row, in lower case; a single
                                            one only beside the scripts above

Stop words (bm25s) and stemmer (Snowball) are those of BM25_LANGUAGE. By `auto` each script that makes up SHARE of the
letters has its own: the language that py3langid finds in most of it, text by text. Latin words in texts of another
script are taken as English, words of other rare scripts as those of the most frequent one.
"""

import functools
import unicodedata
from collections import Counter

import bm25s.stopwords
import regex
import Stemmer
from icu4py.breakers import WordBreaker

from embedding_finetune.data.normalize import SPACED, UNSPACED
from embedding_finetune.files import UserError

SHARE = 0.05  # of the letters, from which on a script has a language of its own
SAMPLE = 200  # texts that are looked at, evenly spaced
STRETCH = 100  # letters that it takes to tell a language
EAST_ASIAN = {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "HALFWIDTH"}  # one script with Han, "CJK"
STOP_WORDS = {"da": "DANISH", "de": "GERMAN", "en": "EN", "es": "SPANISH", "fr": "FRENCH", "it": "ITALIAN",
              "nl": "DUTCH", "no": "NORWEGIAN", "pt": "PORTUGUESE", "ru": "RUSSIAN", "sv": "SWEDISH", "tr": "TURKISH",
              "zh": "CHINESE"}
VARIANTS = {"ary": "ar", "arz": "ar", "nn": "no", "wuu": "zh", "yue": "zh"}  # which share stemmer and stop words

# Forms that Unicode has for old encodings' sake: full and half width, Arabic letters by their place in a word.
COMPATIBLE = regex.compile(r"[\uff00-\uffef\ufb50-\ufdff\ufe70-\ufeff]+")
BOUND, FREE = rf"[{UNSPACED}\p{{Hangul}}]", rf"[{SPACED}--{UNSPACED}--\p{{Hangul}}]"
TOKEN = regex.compile(rf"(?P<word>{FREE}[{FREE}\p{{M}}]+|(?<={BOUND}){FREE}|{FREE}(?={BOUND}))|"
                      rf"(?P<hangul>\p{{Hangul}}+)|(?P<unspaced>{UNSPACED}[{UNSPACED}\p{{M}}]*)", regex.V1)


@functools.cache
def script(character):
    """The script of a letter by its Unicode name, such as "LATIN"; "" for what is no letter."""
    name = unicodedata.name(character, "").partition(" ")[0] if character.isalpha() else ""
    return "CJK" if name in EAST_ASIAN else name


def script_title(name):
    """A script's name for people."""
    return name if name == "CJK" else name.capitalize()


def scripts(texts):
    """Script -> what is written in it, a stretch a text, spaces and signs with the letters before them."""
    found = {}
    for text in texts:
        current, parts = "", {}
        for character in text:
            current = script(character) or current
            parts.setdefault(current, []).append(character)
        for name, part in parts.items():
            if name:
                found.setdefault(name, []).append("".join(part))
    return found


def language_shares(texts):
    """(script, language) -> share of the letters, the most frequent first; rare scripts have the language "".

    Short stretches are identified together, until there are STRETCH letters.
    """
    import py3langid  # takes a second to load
    stretches, shares = scripts(texts[::max(1, len(texts) // SAMPLE)]), Counter()
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
    return dict(shares.most_common())


def languages(texts):
    """Script -> language (ISO 639) of texts, as `auto` finds it, the most frequent script first."""
    found = {}
    for name, code in language_shares(texts):
        if code:
            found.setdefault(name, code)
    return found


class Analyzer:
    """Cuts texts into words; `languages` (script -> language, the main one first) says how."""

    @classmethod
    def of(cls, language, texts):
        """`language` is BM25_LANGUAGE; for `auto`, the texts decide. Raises UserError when it is unknown."""
        return cls(languages(texts) if language == "auto" else {"ALL SCRIPTS": known_language(language)})

    def __init__(self, languages):
        self.languages = languages
        self.tools = {name: _stemmer(code) for name, code in self.languages.items()}
        self.main = next(iter(self.tools.values()), (None, ()))  # without a letter there is none
        self.counted = {}  # word -> what it counts as, "" for a stop word

    def __str__(self):
        return ", ".join(f"{code} ({script_title(name)})" for name, code in self.languages.items())

    def __call__(self, texts):
        """The words of each text: a list of lists."""
        return [[word for word in map(self._count_as, self._cut(text)) if word] for text in texts]

    def _cut(self, text):
        text = COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), unicodedata.normalize("NFC", text))
        if not {"az", "tr"}.isdisjoint(self.languages.values()):
            text = text.replace("İ", "i").replace("I", "ı")  # elsewhere the small letter of I is i
        for match in TOKEN.finditer(text.lower()):
            run, kind = match[0], match.lastgroup
            if kind == "word":
                yield run
            elif kind == "hangul":
                yield from (run[place:place + 2] for place in range(max(1, len(run) - 1)))
            else:
                yield from WordBreaker(run, "en")  # the dictionaries are the same in all locales

    def _count_as(self, word):
        if word not in self.counted:
            stemmer, stop_words = self.tools.get(script(word[0]), self.main)
            self.counted[word] = "" if word in stop_words else stemmer.stemWord(word) if stemmer else word
        return self.counted[word]


def known_language(code):
    """The code, if it is `none` or a language that py3langid knows; raises UserError otherwise."""
    import py3langid
    known = sorted(language for language, _ in py3langid.rank(""))
    if code not in ("none", *known):
        raise UserError(f"BM25_LANGUAGE={code} is unknown: it must be auto, none or one of {', '.join(known)}")
    return code


def _stemmer(language):
    """The stemmer of a language, None if it has none, and its stop words."""
    language = VARIANTS.get(language, language)
    stop_words = getattr(bm25s.stopwords, f"STOPWORDS_{STOP_WORDS[language]}") if language in STOP_WORDS else ()
    try:
        return Stemmer.Stemmer(language), frozenset(stop_words)
    except KeyError:
        return None, frozenset(stop_words)
