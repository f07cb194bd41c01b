import numpy as np
import pytest

from embedding_finetune.files import UserError
from embedding_finetune.models.embedding_cache import EmbeddingCache, TokenEmbeddingStore, text_hash

KEYS = [text_hash("one"), bytes(16), b"\1" * 15 + b"\0"]  # a key may end in zero bytes
VECTORS = np.random.default_rng(0).standard_normal((3, 5), dtype=np.float32)


@pytest.fixture
def cache(tmp_path):
    cache = EmbeddingCache(tmp_path, {"model": "a"})
    cache.write(KEYS, VECTORS)
    return cache


def stored(cache):
    """text_key -> vector, of all files."""
    return {key: vector for keys, vectors in cache.read() for key, vector in zip(keys, vectors, strict=True)}


def same(cache, expected):
    vectors = stored(cache)
    return list(vectors) == list(expected) and all(np.array_equal(vectors[key], expected[key]) for key in expected)


def test_what_is_written_is_read(cache, tmp_path):
    assert same(EmbeddingCache(tmp_path, {"model": "a"}), dict(zip(KEYS, VECTORS)))
    assert stored(EmbeddingCache(tmp_path, {"model": "b"})) == {}
    more = VECTORS + 1
    cache.write([text_hash("two"), text_hash("three"), text_hash("four")], more)
    assert len(stored(cache)) == 6 and np.array_equal(stored(cache)[text_hash("four")], more[2])


def flip(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-20], lambda content: b"",
                                    lambda content: content + b"\0"])
def test_a_damaged_file_is_reported_and_removed(cache, capsys, damage):
    path, = cache.folder.glob("*.npy")
    cache.write([text_hash("two")], VECTORS[:1])
    path.write_bytes(damage(path.read_bytes()))
    assert same(cache, {text_hash("two"): VECTORS[0]})
    assert f"{path} is damaged" in capsys.readouterr().err and not path.exists()
    assert len(stored(cache)) == 1 and not capsys.readouterr().err
    (path / "inside").mkdir(parents=True)  # a folder in the place of a file
    assert len(stored(cache)) == 1 and not path.exists() and f"{path} is damaged" in capsys.readouterr().err


def test_a_write_that_fails_leaves_nothing(cache, monkeypatch):
    before = sorted(cache.folder.iterdir())

    def full_disk(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        cache.write([text_hash("two")], VECTORS[:1])
    assert sorted(cache.folder.iterdir()) == before


def test_surrogates_and_near_texts_have_keys_of_their_own():
    assert len({text_hash(text) for text in ("a", "a ", "A", "\ud800", "", "á", "a\u0301")}) == 7


def token_store(folder):
    store = TokenEmbeddingStore(folder, {"model": "m"}, ["a", "b"])
    store.write([[np.ones((2, 3), np.float16), np.zeros((1, 3), np.float16)]])
    return store


def test_token_vectors_are_complete_until_a_file_is_damaged(tmp_path, capsys):
    store = token_store(tmp_path)
    vectors, starts = store.read()
    assert store.complete() and vectors.shape == (3, 3) and starts.tolist() == [0, 2, 3]
    assert not TokenEmbeddingStore(tmp_path, {"model": "m"}, ["a"]).complete()
    (store.folder / "vectors.raw").write_bytes(b"?" * 18)
    assert not store.complete() and f"{store.folder} is damaged" in capsys.readouterr().err
