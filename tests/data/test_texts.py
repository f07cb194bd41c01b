import itertools
import math
import random

import numpy as np
import pytest
from tiny import tiny_pairs, tiny_texts

from embedding_finetune.data.near_duplicates import near_duplicates, near_duplicates_between
from embedding_finetune.data.normalize import (
    WORD,
    clean_text,
    normalize,
    passage_id,
    query_id,
    remove_query,
    word_tokens,
)

CHINESE = ["獭在夜里沿着河岸觅食，天亮以前回到柳树下的洞里睡觉。", "白鹭在黎明时站在芦苇之间，等鱼游到它的脚边。",
           "红隼悬停在草地上空，看见田鼠就俯冲下来。"]
JAPANESE = ["カワウソは夜になると川のほとりで魚をとり、明け方に巣へ帰ります。"]
THAI = ["นากหากินตอนกลางคืนและกลับโพรงก่อนรุ่งสาง"]


def test_texts_are_the_same_up_to_case_space_and_unicode_form():
    assert normalize("  The\u00a0CAF\u0045\u0301 \n ﬁne ") == "the café fine"
    assert passage_id("The Fine\ncafé") == passage_id("the ﬁne  CAFE\u0301") != passage_id("the fine cafe")
    assert passage_id("abc") == "pba7816bf8f01cfea"  # the first 16 digits of its SHA-256
    assert query_id("ABC ") == "qba7816bf8f01cfea"


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


def test_texts_of_a_script_with_marks_are_not_near_duplicates_by_their_consonants():
    one = "नदी के किनारे रहने वाला ऊदबिलाव रात में मछलियाँ पकड़कर खाता है"
    assert pairs_of([one, one.replace("ी", "े").replace("ा", "ो").replace("ि", "ु"), one + " और सोता है"]) == [(0, 2)]


def by_sets(texts):
    """The definition, written down: runs of five words as sets of tuples, and every pair of texts."""
    found = []
    runs = [{tuple(text[place:place + 5]) for place in range(max(1, len(text) - 4))} if text else set()
            for text in map(word_tokens, texts)]
    for (one, first), (other, second) in itertools.combinations(enumerate(runs), 2):
        fewer = min(len(first), len(second))
        if fewer and len(first & second) >= math.ceil(round(0.8 * fewer, 6)):
            found.append((one, other))
    return found


def pairs_of(texts):
    found = near_duplicates(texts)
    assert found.dtype == np.int64 and found.shape[1] == 2 and (found[:, 0] < found[:, 1]).all()
    assert len(set(map(tuple, found.tolist()))) == len(found)
    return sorted(map(tuple, found.tolist()))


def edited(tokens, generator, edits, new):
    """Some of the tokens left out, doubled or replaced by `new`; perhaps cut, perhaps said twice."""
    tokens = list(tokens)
    for _ in range(edits):
        place = generator.randrange(len(tokens))
        tokens[place:place + 1] = generator.choice([[], [tokens[place]] * 2, [new]])
    if generator.random() < 0.3:
        tokens = tokens[:len(tokens) * 3 // 4 + 1]
    return tokens * (1 + (generator.random() < 0.1))


@pytest.mark.parametrize("seed", range(8))
def test_random_texts_agree_with_sets(seed):
    """A small vocabulary, so that runs are shared by chance, and lengths around the length of a run."""
    generator = random.Random(seed)
    texts = [" ".join(generator.choices("abcd"[:2 + seed % 3], k=generator.randrange(12))) for _ in range(150)]
    texts += generator.choices(texts, k=20) + ["", " ", "?!"]
    expected = by_sets(texts)
    assert len(expected) > 20 and len(expected) < 150 * 170 / 2
    assert pairs_of(texts) == expected


@pytest.mark.parametrize("seed", range(3))
def test_real_texts_and_their_edits_agree_with_sets(seed):
    generator = random.Random(seed)
    english = tiny_texts(tiny_pairs(60, seed=seed))
    texts = english + CHINESE + JAPANESE + THAI
    for _ in range(120):
        texts.append(" ".join(edited(generator.choice(english).split(), generator, generator.randrange(4), "indeed")))
    for _ in range(40):
        texts.append("".join(edited(generator.choice(CHINESE + JAPANESE), generator, generator.randrange(5), "再")))
    texts += [" ".join(generator.choices(english, k=2)) for _ in range(10)]
    generator.shuffle(texts)
    expected = by_sets(texts)
    found = pairs_of(texts)
    assert found == expected
    assert any(len(word_tokens(texts[one])) > 5 and texts[one] != texts[other] for one, other in found)
    scripts = [any(character in texts[one] for character in "獭鹭隼") for one, _ in found]
    assert any(scripts) and not all(scripts)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_across_two_lists_are_those_of_both_together(seed):
    generator = random.Random(seed)
    texts = [" ".join(generator.choices("abc", k=generator.randrange(12))) for _ in range(120)]
    texts += tiny_texts(tiny_pairs(30, seed=seed)) + [text + " indeed" for text in CHINESE]
    others = texts[90:130] + CHINESE + [text + " indeed" for text in texts[130:]]
    expected = [(one, other - len(texts)) for one, other in by_sets(texts + others) if one < len(texts) <= other]
    found = near_duplicates_between(iter(texts), iter(others))
    assert sorted(map(tuple, found.tolist())) == expected and len(expected) > 100
    assert near_duplicates_between(texts, []).shape == near_duplicates_between([], others).shape == (0, 2)


def test_the_share_counts_at_its_edge_by_hand():
    """Of the 10 runs of a text of 14 words another one has 8, or 7."""
    letters = list("abcdefghijklmn")
    eight, seven = letters[:12] + ["x", "y"], letters[:11] + ["x", "y", "z"]
    texts = [" ".join(text) for text in (letters, eight, seven)]
    assert pairs_of(texts)[0] == (0, 1) and (0, 2) not in pairs_of(texts)


def test_a_short_text_is_a_run_of_its_own_length():
    assert pairs_of(["Red fox!", "red  fox", "red fox jumps", "fox red", "a red fox jumps over it"]) == [(0, 1)]


@pytest.mark.parametrize("texts", [[], [""], ["", " ", ""], ["one text that is alone here"], ["one", "two"],
                                   {"a": "the keys are not read", "b": "values of a dict"}.values()])
def test_few_texts_and_none_give_no_pairs(texts):
    assert pairs_of(texts) == []


def test_blocks_do_not_change_the_pairs():
    """More texts than are looked at together: pairs within a block and across."""
    texts = [f"passage number {number} tells of the place {number * 7} and of nothing else" for number in range(4500)]
    texts[4400] = texts[3] + " besides"
    texts[4450] = texts[4449] + " besides"
    assert pairs_of(texts) == [(3, 4400), (4449, 4450)]


@pytest.mark.parametrize("text, query, left", [
    ("A > B (c)\nbody a", "A B (c)", "body a"), ("one two  \n three four", "two three", "one four"),
    ("先备份数据，然后安装。", "备份数据，然后", "先 安装。"), ("a b a b", "a b", "a b"), ("a b", "a b", "a b"),
    ("a b", "b a", "a b")])
def test_a_query_is_taken_out_where_it_stands_word_for_word(text, query, left):
    assert remove_query(text, query) == left


def test_long_texts_that_share_runs_by_the_hundred_are_found():
    """A count of them in eight bits would wrap around at 256, and 0 is no candidate."""
    words_of = [f"w{number}" for number in range(2600)]
    for size in (1000, 1275, 1279, 1283, 2560, 2600):
        assert pairs_of([" ".join(words_of[:size]), " ".join(["more", *words_of[:size]])]) == [(0, 1)]
