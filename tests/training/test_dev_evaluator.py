"""The dev curve against pytrec_eval, and that a look at it leaves the training as it was."""

import itertools
import random
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import pytrec_eval
import torch
from batches_for_tests import batch_of, load
from sentence_transformers import SentenceTransformer
from tiny_training import TOPICS, VERBS, passages, use
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, AutoTokenizer, BertModel

from embedding_finetune.data.collection import Collection, read_collection
from embedding_finetune.models.multi_vector import special_token_ids
from embedding_finetune.training.dev_evaluator import DevEvaluator, dev_corpus, dev_metrics
from embedding_finetune.training.loss import ContrastiveModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def collection(tiny):
    return read_collection(tiny / "data").split("dev")


def dev_set(tiny, collection, size=60, seed=1, **changes):
    return DevEvaluator(collection, SimpleNamespace(dev_corpus_size=size, seed=seed),
                        AutoTokenizer.from_pretrained(tiny / "bert"), use(**changes), CPU)


def test_the_values_are_pytrec_evals_over_sentence_transformers_vectors(tiny, collection):
    """The whole corpus, so that nothing is left to a sample."""
    measured = dev_set(tiny, collection, size=10**6, passage_prompt="text ").evaluate(load(tiny / "bert").train())
    model = SentenceTransformer(str(tiny / "bert"), device="cpu")
    model[1].pooling_mode = "cls"
    queries = model.encode(["find: " + text for text in collection.queries.values()], normalize_embeddings=True)
    passages = model.encode(["text " + text for text in collection.corpus.values()], normalize_embeddings=True)
    best = {query: dict(sorted(zip(collection.corpus, row.tolist()), key=lambda item: -item[1])[:10])
            for query, row in zip(collection.queries, queries @ passages.T)}
    evaluator = pytrec_eval.RelevanceEvaluator(collection.qrels, {"recall.10", "recip_rank"})
    expected = evaluator.evaluate(best).values()
    assert 0 < measured["mrr@10"] < 1
    assert measured["mrr@10"] == pytest.approx(np.mean([row["recip_rank"] for row in expected]), abs=1e-9)
    assert measured["recall@10"] == pytest.approx(np.mean([row["recall_10"] for row in expected]), abs=1e-9)


def test_the_sample_has_all_positives_and_is_that_of_the_seed(tiny, collection):
    def texts(dev):
        subs, rows = dev.corpus
        laid_out = [tuple(ids[mask.bool()].tolist()) for sub in subs
                    for ids, mask in zip(sub["input_ids"], sub["attention_mask"])]
        return [laid_out[row] for row in rows]

    judged, _ = collection.positive_pool()
    first, again, other = (texts(dev_set(tiny, collection, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other and len(first) == len(judged) + 60
    assert first[:len(judged)] == other[:len(judged)]
    assert len(texts(dev_set(tiny, collection, size=0))) == len(judged)


def test_equal_scores_keep_the_order_of_the_corpus(tiny):
    """All vectors are the same: the first positive stands first, the others where the corpus has them."""
    corpus = {str(number): f"{number} river" for number in range(30)}
    queries = {"a": "moon", "b": "copper"}
    parts = dict.fromkeys(queries, "dev")
    collection = Collection(queries, corpus, {"a": {"3": 1}, "b": {"3": 1, "7": 1, "9": 0}}, parts)
    model = load(tiny / "bert")
    model.score = lambda one, other: torch.zeros(len(one), len(other))
    assert dev_set(tiny, collection).evaluate(model) == {"recall@10": 1.0, "mrr@10": 1.0}
    behind = Collection(queries, corpus, {"a": {"3": 1}, "b": {"7": 1}}, parts)
    assert dev_set(tiny, behind).evaluate(model) == {"recall@10": 1.0, "mrr@10": 0.75}
    nothing = Collection(queries, corpus, {"a": {"3": 1}, "b": {"7": 0}}, parts)  # as trec_eval has it
    assert dev_set(tiny, nothing).evaluate(model) == {"recall@10": 0.5, "mrr@10": 0.5}


def contrastive(tiny, architecture):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert")
    return ContrastiveModel(AutoModel.from_pretrained(tiny / "bert"), architecture=architecture, longest=48,
                            added=special_token_ids(tokenizer))


@pytest.mark.parametrize("architecture", ["single_vector", "multi_vector", "both"])
def test_block_by_block_gives_the_metrics_of_all_scores_at_once(tiny, collection, architecture, monkeypatch):
    """With texts that stand in the corpus twice, before and behind a positive, and a query that is asked twice."""
    monkeypatch.setattr("embedding_finetune.training.dev_evaluator.TOGETHER", 8000)  # few queries at a time
    twice = {"before": collection.corpus["3"]} | collection.corpus | {"behind": collection.corpus["5"]}
    queries = collection.queries | {"again": collection.queries["7"]}
    collection = Collection(queries, twice, collection.qrels | {"again": {"8": 1}}, dict.fromkeys(queries, "dev"))
    dev, model = dev_set(tiny, collection, size=10**6), contrastive(tiny, architecture).eval()

    def encoded(laid_out):
        return torch.cat([model([sub]) for sub in laid_out[0]])[laid_out[1]]

    with torch.no_grad():
        scores = model.score(encoded(dev.queries), encoded(dev.corpus))
    assert len(dev.corpus[0]) > 2
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :10].tolist()
    ids = list(dev_corpus(collection, 10**6, seed=1))
    expected = dev_metrics(collection.qrels, {query: [ids[place] for place in places]
                                              for query, places in zip(queries, best, strict=True)})
    assert dev.evaluate(model) == pytest.approx(expected, abs=1e-12) and 0 < expected["mrr@10"] < 1


def test_copies_of_dev_queries_are_no_distractors():
    collection = Collection({"q": "a"}, {"p": "b", "copy": "A", "other": "c"}, {"q": {"p": 1}}, copies={"q": ["copy"]})
    assert list(dev_corpus(collection, 10, seed=1)) == ["p", "other"]


class Held(TorchDispatchMode):
    """`peak`: the most bytes of tensors made in it that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in self.alive:
                storage = tensor.untyped_storage()
                self.alive[id(tensor)] = storage.data_ptr(), storage.nbytes()
                weakref.finalize(tensor, self.alive.pop, id(tensor))
        self.peak = max(self.peak, sum(dict(self.alive.values()).values()))
        return found


def peak(tiny, queries, texts):
    """The bytes that a look holds at its peak, with token vectors of 32 dimensions."""
    collection = Collection(queries, texts, {query: {"p3": 1} for query in queries}, dict.fromkeys(queries, "dev"))
    dev, model = dev_set(tiny, collection, size=len(texts)), contrastive(tiny, "multi_vector")
    with Held() as held:
        dev.evaluate(model)
    return held.peak


def test_token_vectors_of_few_passages_are_held_and_of_queries_no_padding(tiny, monkeypatch):
    """Padded to 48 tokens, those of 2,400 passages would take 14.7 MB, those of 300 short queries 1.8 MB."""
    padded = 48 * 32 * 4
    texts = {f"p{number}": text for number, text in enumerate(passages(2400))}
    assert 64 * padded <= peak(tiny, {"a": "moon river", "b": "copper violin falcon"}, texts) < 0.5 * 2400 * padded
    for name in ("training.dev_evaluator.TOGETHER", "models.multi_vector.MAXSIM_BLOCK"):
        monkeypatch.setattr(f"embedding_finetune.{name}", 1 << 15)
    queries = {f"q {words}": " ".join(words) for words in itertools.product(TOPICS + VERBS, repeat=2)}  # distinct
    few, many = (peak(tiny, dict(list(queries.items())[:count]), dict(list(texts.items())[:20])) for count in (60, 360))
    assert many - few < 0.5 * 300 * padded


class KeepsATensor(BertModel):
    """Makes a tensor when it is first used and uses it ever after, as rotary embeddings do."""

    kept = None

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if self.kept is None:
            self.kept = torch.ones(output.last_hidden_state.shape[-1])
        output.last_hidden_state = output.last_hidden_state * self.kept
        return output


def test_what_a_model_keeps_from_the_first_look_can_be_trained_with(tiny, collection):
    model = ContrastiveModel(KeepsATensor.from_pretrained(tiny / "bert"))
    dev_set(tiny, collection).evaluate(model)
    assert model.encoder.kept is not None
    model.train()
    model(**batch_of(tiny)[0])["loss"].backward()  # an inference tensor "cannot be saved for backward"


def test_a_look_computes_no_graph_and_draws_nothing(tiny, collection):
    model = ContrastiveModel(AutoModel.from_pretrained(tiny / "bert_dropout")).train()
    dev, state = dev_set(tiny, collection), torch.get_rng_state()
    random.seed(4)
    first = dev.evaluate(model)
    assert dev.evaluate(model) == first  # without dropout
    assert torch.equal(torch.get_rng_state(), state) and random.random() == random.Random(4).random()
    assert all(parameter.grad is None for parameter in model.parameters())
