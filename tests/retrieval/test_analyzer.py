import json
import unicodedata
from types import SimpleNamespace

import bm25s
import numpy as np
import pytest
import Stemmer
from tiny import tiny_pairs, tiny_texts

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.analyzer import Analyzer, languages, script, scripts
from embedding_finetune.retrieval.base import make_retriever
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.settings import ROOT, Settings

QUESTIONS = {path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
             for path in sorted((ROOT / "tests" / "questions").glob("*.jsonl"))}
PASSAGES = {language: [row["pos"][0] for row in rows] for language, rows in QUESTIONS.items()}


def english_words(texts):
    """The independent implementation: what bm25s makes of English."""
    return bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), return_ids=False,
                          show_progress=False)


def recall_at_1(rows):
    """Share of the questions whose passage BM25 ranks first."""
    corpus = {f"p{number}": row["pos"][0] for number, row in enumerate(rows)}
    run = BM25().index(corpus).search({f"q{number}": row["query"] for number, row in enumerate(rows)}, depth=1)
    return np.mean([list(run[f"q{number}"]) == [f"p{number}"] for number in range(len(rows))])


@pytest.mark.parametrize("text", [
    "The Quick_brown foxes' DEN, no. 7 of x1 and a B-tree: f(x) = 3.14 e.g. été naïve x²y ½ Ωm \u200b",
    "IL-6β NF-κB µm TNFα ЖЖ \ufb01ne Ⅷth cafés 🦦otters 10×20 ①② don't", "", "a", "!? ..."])
def test_english_is_cut_as_it_always_was(text):
    assert Analyzer.of("en", [])([text]) == english_words([text])


@pytest.mark.parametrize("written, seen", [("re\u00adset the pu\u200bmp", "reset the pump"), ("क्\u200dष", "क्ष"),
                                            ("می\u200cخواهم", "می خواهم")])
def test_characters_that_are_not_displayed_change_no_word(written, seen):
    assert Analyzer.of("none", [])([written]) == Analyzer.of("none", [])([seen]) != [[]]


def test_english_corpora_are_taken_as_english_whatever_they_are_about():
    texts = tiny_texts(tiny_pairs(80)) + (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n")
    taken = Analyzer.of("auto", texts)
    assert str(taken) == "en (Latin)"
    plain = [text for text in texts if not any(script(character) == "CJK" for character in text)]
    assert len(plain) > 100 and taken(plain) == english_words(plain)


@pytest.mark.parametrize("text, expected", [
    ("我用Python写BM25。", ["我", "用", "python", "写", "bm25"]),                    # Chinese with English terms
    ("C语言的B树 3月 a b", ["c", "语言", "的", "b", "树", "3", "月"]),   # one letter counts beside Han only
    ("東京のサーバーを再起動する", ["東京", "の", "サーバー", "を", "再", "起動", "する"]),
    ("นากหากินตอนกลางคืน", ["นาก", "หากิน", "ตอน", "กลาง", "คืน"]),
    ("강아지가 집에 AI를", ["강아", "아지", "지가", "집에", "ai", "를"]),             # pairs of syllables
    ("हिन्दी पाठ", ["हिन्दी", "पाठ"]),                             # vowel signs are of the word
    ("ＰＹＴＨＯＮ ﾊﾝｶｸ", ["python", "ハン", "カク"])])                       # full and half width
def test_texts_are_cut_by_script(text, expected):
    assert Analyzer.of("none", [])([text]) == [expected]


def test_composed_and_decomposed_letters_are_the_same_word():
    for text in ("cafés", "강아지가", "がんばる", "йогурт"):
        assert Analyzer.of("none", [])([unicodedata.normalize("NFD", text)]) == Analyzer.of("none", [])([text])


def test_the_language_decides_stemmer_and_stop_words():
    assert Analyzer.of("de", [])(["Die Häuser der Katzen"]) == [["haus", "katz"]]
    assert Analyzer.of("en", [])(["die houses of the cats"]) == [["die", "hous", "cat"]]
    assert Analyzer.of("none", [])(["Die Häuser der Katzen"]) == [["die", "häuser", "der", "katzen"]]
    turkish = Analyzer.of("tr", [])(["ISPARTA İzmir"])
    assert turkish == Analyzer.of("tr", [])(["ısparta izmir"]) != Analyzer.of("none", [])(["ISPARTA İzmir"])
    assert Analyzer.of("zh", [])(["什么是光合作用"]) == [["光合作用"]]
    assert Analyzer.of("vi", [])(["Thủ đô của"]) == [["thủ", "đô", "của"]]  # neither stemmer nor stop words
    with pytest.raises(UserError, match="BM25_LANGUAGE=klingon is unknown: it must be auto, none or one of .*, en, "):
        Analyzer.of("klingon", [])


@pytest.mark.parametrize("language", QUESTIONS)
def test_the_language_is_found_in_the_corpus(language):
    assert next(iter(languages(PASSAGES[language]).values())) == language


def test_each_script_has_its_language_and_latin_terms_are_english():
    texts = PASSAGES["zh"] + PASSAGES["de"]
    assert languages(texts) == {"CJK": "zh", "LATIN": "de"}
    assert str(Analyzer.of("auto", texts)) == "de (Latin), zh (CJK)"  # Latin has more letters
    assert languages(PASSAGES["zh"]) == {"CJK": "zh", "LATIN": "en"}  # fewer than SHARE of the letters
    cut = Analyzer.of("auto", PASSAGES["zh"] + PASSAGES["ar"])
    assert cut(["天气 databases", "المدرسة the"]) == [["天气", "databas"], ["مدرس"]]


def test_a_corpus_without_letters_has_no_language():
    assert languages([]) == languages(["", "12 !?"]) == {} == scripts(["3.14"])
    assert Analyzer.of("auto", ["12 34"])(["12 34 x \ud83d", ""]) == [["12", "34"], []]
    assert BM25().index({"a": "12 34"}).search({"q": "34"})["q"].keys() == {"a"}


@pytest.mark.parametrize("language, least", [("zh", 0.8), ("ja", 0.8), ("ko", 0.95), ("ar", 0.75), ("de", 0.7),
                                             ("hi", 1)])  # English analysis finds 0.02, 0.02, 0.5, 0.67, 0.42, 0.7
def test_questions_find_their_passages(language, least):
    assert recall_at_1(QUESTIONS[language]) >= least


def test_many_languages_in_one_corpus_find_each_their_own():
    assert recall_at_1([row for language in QUESTIONS.values() for row in language]) > 0.8  # English analysis: 0.3


def test_bm25_says_what_it_took_and_a_setting_says_otherwise(monkeypatch):
    corpus = dict(enumerate(PASSAGES["de"]))
    assert BM25().index(corpus).config == {"language": "de (Latin)", "k1": 1.5, "b": 0.75}
    without = make_retriever("bm25", SimpleNamespace(bm25_language="none")).index(corpus)
    assert without.config["language"] == "none (All scripts)"
    for value in ("German", "e", "de,en", ""):
        monkeypatch.setenv("BM25_LANGUAGE", value)
        with pytest.raises(UserError, match="BM25_LANGUAGE=.* is impossible: it must be auto, none or a code"):
            Settings.load("demo")
    monkeypatch.setenv("BM25_LANGUAGE", "de")
    monkeypatch.setenv("LANGUAGE", "en_US:en")  # a variable of gettext's, and none of ours
    assert Settings.load("demo").bm25_language == "de"
