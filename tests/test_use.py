"""docs/deploy.md: every snippet runs, where its package is installed, and gives the vectors of this package."""

import importlib.util
import re

import numpy as np
import pytest
import transformers
from tiny import tiny_bert

from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.settings import ROOT
from embedding_finetune.training.export import export

PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"### ([\w-]+)\n.*?```python\n(.*?)```", PAGE, flags=re.DOTALL))
PACKAGES = {"sentence-transformers": "sentence_transformers", "FlagEmbedding": "FlagEmbedding",
            "LangChain": "langchain_huggingface", "LlamaIndex": "llama_index"}
QUERY, PASSAGE = "how do I join two tables", "Merge DataFrame objects with a database-style join."


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A finished model that is used as the page says of output/demo/neg10."""
    folder = tmp_path_factory.mktemp("use")
    prompt = re.search(r'query_instruction_for_retrieval="(.*)"', PAGE)[1]
    base = str(tiny_bert(folder / "base", [QUERY, PASSAGE, prompt] * 2))
    config = EncoderConfig("neg10", "neg10", base, "cls", prompt, "", 48, 96)
    model = transformers.AutoModel.from_pretrained(config.name)
    export(model, transformers.AutoTokenizer.from_pretrained(config.name), folder / "neg10", config)
    return EncoderConfig(**(vars(config) | {"name": str(folder / "neg10")}))


@pytest.mark.parametrize("library", PACKAGES)
def test_the_same_vectors_in_every_library(config, library):
    if importlib.util.find_spec(PACKAGES[library]) is None:
        pytest.skip(f"{library} is not installed: docs/deploy.md says how")
    assert "output/demo/neg10" in SNIPPETS[library]
    found = {}
    exec(SNIPPETS[library].replace("output/demo/neg10", config.name), found)
    encoder = Encoder(config)
    for vectors, expected in ((found["queries"], encoder.encode_queries([QUERY])),
                              (found["passages"], encoder.encode_passages([PASSAGE]))):
        vectors = np.asarray(vectors, np.float32)
        assert vectors.shape == (1, 64)
        assert np.abs(vectors - expected).max() < 1e-5  # random weights give all texts nearly one direction
