import itertools

import pytest

from embedding_finetune.data.normalize import (
    WORD,
    clean_text,
    normalize,
    passage_id,
    query_id,
    remove_ignored,
    remove_query,
    word_tokens,
)

THAI = ["นากหากินตอนกลางคืนและกลับโพรงก่อนรุ่งสาง"]


def test_texts_are_the_same_up_to_case_space_and_unicode_form():
    assert normalize("  The\u00a0CAF\u0045\u0301 \n ﬁne ") == "the café fine"
    assert passage_id("The Fine\ncafé") == passage_id("the ﬁne  CAFE\u0301") != passage_id("the fine cafe")
    assert passage_id("abc") == "pba7816bf8f01cfea"  # the first 16 digits of its SHA-256
    assert query_id("ABC ") == "qba7816bf8f01cfea"


@pytest.mark.parametrize("text, same, words", [
    ("re\u200bset the \ufeffpump\u2060", "reset the pump", ["reset", "the", "pump"]),
    ("cafe\u00ad\u0301 \u2764\ufe0f", "café \u2764", ["café"]),  # removed first: the accent then combines
    ("a\u200db 1\u200c2", "ab 12", ["ab", "12"]), ("\u3164x\u115f\u034f\u202e", "x", ["x"]),
    ("می\u200cخواهم", "می\u200cخواهم", ["می", "خواهم"]),  # Persian: a joiner of a word, at which Lucene splits it
    ("مً\u200c\u200cخ می\u200c", "مً\u200cخ می", ["مً", "خ", "می"]),
    ("क्\u200dष", "क्\u200dष", ["क्ष"]), ("क\u200d k\u200d", "क k", ["क", "k"])])
def test_what_is_not_displayed_does_not_count_but_joiners_that_belong_to_the_spelling_do(text, same, words):
    assert normalize(text) == normalize(same) == same and word_tokens(text) == words


def test_a_zero_width_space_marks_words_where_there_are_no_others():
    assert remove_ignored("នាក\u200bហាក foo\u200bbar") == "នាក\u200bហាក foobar"


@pytest.mark.parametrize("text", ["", " \n", "\u200b", " \ufeff\u00ad ", "\u2800\u3164", "\x00\x07", "\ufe0f\u200d"])
def test_a_text_without_a_visible_character_is_empty(text):
    assert clean_text(text) == "" and clean_text(f"{text}-{text}").strip() != ""


def test_half_a_surrogate_pair_becomes_what_a_file_can_hold():
    assert clean_text(" a \ud83d b\n") == "a ? b" and clean_text("\U0001f9a6") == "\U0001f9a6"


def test_words_are_characters_where_a_script_has_no_spaces():
    assert word_tokens("The Otter's ＤＥＮ, no. 7!") == ["the", "otter", "s", "den", "no", "7"]
    assert word_tokens("獭在夜里 eats 魚") == ["獭", "在", "夜", "里", "eats", "魚"]
    assert word_tokens("カワ") == ["カ", "ワ"] and len(word_tokens(THAI[0])) > 20 and word_tokens("강아지 둘") == ["강아지", "둘"]
    assert word_tokens("佐々木・サーバー𠀋") == list("佐々木サーバー𠀋") and len(word_tokens("ရန်ကုန်")) == 7


def test_the_words_of_ascii_are_those_of_the_pattern_of_all_scripts():
    for text in map("".join, itertools.product(map(chr, range(128)), map(chr, range(128)), "aA_ 1")):
        assert word_tokens(text) == WORD.findall(text.lower())


def test_a_word_goes_on_over_its_marks():
    assert word_tokens("हिन्दी में पाठ") == ["हिन्दी", "में", "पाठ"] and word_tokens("مَدْرَسَة") == ["مَدْرَسَة"]
    assert word_tokens("40 ˚C ´x`") == ["40", "c", "x"]  # NFKC makes marks of these; no word begins with one


@pytest.mark.parametrize("text, query, left", [
    ("A > B (c)\nbody a", "A B (c)", "body a"), ("one two  \n three four", "two three", "one four"),
    ("先备份数据，然后安装。", "备份数据，然后", "先 安装。"), ("a b a b", "a b", "a b"), ("a b", "a b", "a b"),
    ("a b", "b a", "a b")])
def test_a_query_is_taken_out_where_it_stands_word_for_word(text, query, left):
    assert remove_query(text, query) == left
