"""MaxSim over batches and its gradient against plain loops; which tokens count."""

import pytest
import torch
from transformers import AutoTokenizer

from embedding_finetune.files import UserError
from embedding_finetune.models import multi_vector
from embedding_finetune.models.modeling import DenseLayers
from embedding_finetune.models.multi_vector import (
    expand_queries,
    maxsim,
    new_projection,
    special_token_ids,
    token_embeddings,
)


def texts(generator, count, longest, dim=5):
    """Random token vectors of length 1, zeros after a random number of them; the second text has none at all."""
    vectors = torch.nn.functional.normalize(torch.randn(count, longest, dim, generator=generator), dim=-1)
    for number, size in enumerate(torch.randint(1, longest, (count,), generator=generator).tolist()):
        vectors[number, 0 if number == 1 else size:] = 0
    return vectors


def plain(queries, passages):
    """MaxSim by loops over tokens."""
    rows = []
    for query in queries:
        row = []
        for passage in passages:
            own = [token for token in query if token.any()]
            best = [max([token @ other for other in passage if other.any()], default=torch.tensor(-1.0))
                    for token in own]
            row.append(sum(best) / len(best) if best else query.sum() * 0)
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("together", [1 << 26, 1])
def test_max_sim_and_its_gradient_are_those_of_a_plain_loop(monkeypatch, together):
    monkeypatch.setattr(multi_vector, "MAXSIM_BLOCK", together)
    generator, found = torch.Generator().manual_seed(3), {}
    queries, passages = texts(generator, 4, 6), texts(generator, 5, 9)
    weights = torch.randn(4, 5, generator=generator)
    for name, score in (("ours", maxsim), ("plain", plain)):
        one, other = queries.clone().requires_grad_(), passages.clone().requires_grad_()
        scores = score(one, other)
        (scores * weights).sum().backward()
        found[name] = scores.detach(), one.grad, other.grad
    torch.testing.assert_close(found["ours"], found["plain"], atol=1e-6, rtol=1e-5)
    assert (found["ours"][0][:, 1] == -1)[[0, 2, 3]].all() and (found["ours"][0][1] == 0).all()


def test_what_the_tokenizer_adds_and_padding_are_no_tokens_of_a_text(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert")
    added = special_token_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(added) == ["[CLS]", "[SEP]"]
    batch = tokenizer(["river moon", "moon", ""], padding=True, return_tensors="pt")
    hidden = torch.randn(3, batch["input_ids"].shape[1], 32)
    vectors = token_embeddings(hidden, batch, added, DenseLayers())
    assert vectors.any(-1).sum(1).tolist() == [2, 1, 0]
    assert vectors[0, 1] == pytest.approx((hidden[0, 1] / hidden[0, 1].norm()).numpy(), abs=1e-6)
    small = token_embeddings(hidden, batch, added, new_projection(32, 8))
    assert small.shape[-1] == 8 and small.norm(dim=-1).sum().item() == pytest.approx(3, abs=1e-5)


def test_queries_are_filled_up_with_mask_tokens(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert")
    ids = tokenizer(["river moon", "moon moon moon"])["input_ids"]
    assert expand_queries(tokenizer, ids, 0) == ids
    short, long = expand_queries(tokenizer, ids, 5)
    assert short == [*ids[0], tokenizer.mask_token_id] and long == ids[1]
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="no mask token"):
        expand_queries(tokenizer, ids, 5)
