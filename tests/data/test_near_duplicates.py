import itertools
import math
import random

import numpy as np
import pytest
from sklearn.feature_extraction import FeatureHasher
from tiny import tiny_pairs, tiny_texts

from embedding_finetune.data import near_duplicates as module
from embedding_finetune.data.near_duplicates import near_duplicates, near_duplicates_between
from embedding_finetune.data.normalize import word_tokens

CHINESE = ["獭在夜里沿着河岸觅食，天亮以前回到柳树下的洞里睡觉。", "白鹭在黎明时站在芦苇之间，等鱼游到它的脚边。",
           "红隼悬停在草地上空，看见田鼠就俯冲下来。"]
JAPANESE = ["カワウソは夜になると川のほとりで魚をとり、明け方に巣へ帰ります。"]
THAI = ["นากหากินตอนกลางคืนและกลับโพรงก่อนรุ่งสาง"]


def test_texts_of_a_script_with_marks_are_not_near_duplicates_by_their_consonants():
    one = "नदी के किनारे रहने वाला ऊदबिलाव रात में मछलियाँ पकड़कर खाता है"
    assert pairs_of([one, one.replace("ी", "े").replace("ा", "ो").replace("ि", "ु"), one + " और सोता है"]) == [(0, 2)]


def by_sets(texts):
    """The definition, written down: shingles as sets of tuples, and every pair of texts."""
    found = []
    shingles = [{tuple(text[place:place + 5]) for place in range(max(1, len(text) - 4))} if text else set()
            for text in map(word_tokens, texts)]
    for (one, first), (other, second) in itertools.combinations(enumerate(shingles), 2):
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


@pytest.fixture(params=[False, True], ids=["at once", "in small blocks"])
def blocks(request, monkeypatch):
    """Hash and compare all texts at once, or a few at a time."""
    for name, size in {"HASHED_TEXTS": 7, "CANDIDATE_PAIRS": 50, "COMPARED_PAIRS": 9}.items() if request.param else ():
        monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize("seed", range(4))
def test_random_texts_agree_with_sets(seed, blocks):
    """A small vocabulary, so that shingles are shared by chance, and lengths around the length of a shingle."""
    generator = random.Random(seed)
    texts = [" ".join(generator.choices("abcd"[:2 + seed % 3], k=generator.randrange(12))) for _ in range(150)]
    texts += generator.choices(texts, k=20) + ["", " ", "?!"]
    expected = by_sets(texts)
    assert len(expected) > 20 and len(expected) < 150 * 170 / 2
    assert pairs_of(texts) == expected


def test_short_texts_whose_hashes_collide_are_no_near_duplicates(monkeypatch):
    monkeypatch.setattr(module, "HASHER", FeatureHasher(n_features=3, input_type="string", alternate_sign=False))
    texts = ["Red fox!", "otter", "red fox", "lynx", "pike", "grey heron", "an otter by the river", ""]
    assert pairs_of(texts) == [(0, 2)]


@pytest.mark.parametrize("seed", range(2))
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


@pytest.mark.parametrize("seed", range(2))
def test_pairs_across_two_lists_are_those_of_both_together(seed, blocks):
    generator = random.Random(seed)
    texts = [" ".join(generator.choices("abc", k=generator.randrange(12))) for _ in range(120)]
    texts += tiny_texts(tiny_pairs(30, seed=seed)) + [text + " indeed" for text in CHINESE]
    others = texts[90:130] + CHINESE + [text + " indeed" for text in texts[130:]]
    expected = [(one, other - len(texts)) for one, other in by_sets(texts + others) if one < len(texts) <= other]
    found = near_duplicates_between(iter(texts), iter(others))
    assert sorted(map(tuple, found.tolist())) == expected and len(expected) > 100
    assert near_duplicates_between(texts, []).shape == near_duplicates_between([], others).shape == (0, 2)


@pytest.mark.parametrize("texts", [[], [""], ["", " ", ""], ["one text that is alone here"], ["one", "two"],
                                   {"a": "the keys are not read", "b": "values of a dict"}.values()])
def test_few_texts_and_none_give_no_pairs(texts):
    assert pairs_of(texts) == []


@pytest.mark.parametrize("size", [1000, 1275, 1279, 2600])
def test_long_texts_that_share_hundreds_of_shingles_are_found(size):
    """A count of them in eight bits would wrap around at 256, and 0 is no candidate."""
    text = " ".join(f"w{number}" for number in range(size))
    assert pairs_of([text, f"more {text}"]) == [(0, 1)]
