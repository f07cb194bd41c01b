"""A tiny training set and the models that train on it, for tests that need speed and no meaning."""

import random

import pytest
from safetensors.torch import load_file
from tiny import tiny_bert

from embedding_finetune.data.collection import Collection, write_collection
from embedding_finetune.data.row_store import PASSAGES, read_rows, write_passages
from embedding_finetune.data.row_store import write_rows as write_rows_by_id
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.training.arguments import TrainingSettings, write_settings
from embedding_finetune.training.log import read_log

TOPICS = "river moon copper violin harbour glacier pepper engine orchard lantern falcon marble".split()
ROWS, SCORED_ROWS = "rows/rows.arrow", "scored_rows/rows.arrow"
VERBS = "feeds cools carries mirrors shelters breaks colours follows".split()


def passages(count, seed=0):
    """`count` distinct sentences of 4 to 40 words."""
    draw = random.Random(seed)
    return [f"{number} " + " ".join(draw.choice(TOPICS + VERBS) for _ in range(draw.randint(3, 39)))
            for number in range(count)]


def trainable_bert(folder, dropout=0.0):
    """A random two-layer BERT that knows the words of `passages`, with 128 positions."""
    return tiny_bert(folder, passages(300), hidden_size=32, num_attention_heads=4, intermediate_size=64,
                     max_position_embeddings=128, initializer_range=0.1, hidden_dropout_prob=dropout,
                     attention_probs_dropout_prob=dropout)


def training_rows(count=60, negatives=6, seed=1, scores=False, second_positives=True):
    """Rows of the training file; every third has two positives, unless told otherwise."""
    draw, texts = random.Random(seed), passages(200)
    rows = []
    for number in range(count):
        positives = [texts[number]] + [texts[number + 100]] * (second_positives and number % 3 == 0)
        row = {"query": " ".join(texts[number].split()[1:4]), "pos": positives, "prompt": "find: ", "id": str(number),
               "neg": draw.sample([text for text in texts if text not in positives], negatives)}
        if scores:
            row |= {"pos_scores": [draw.random() for _ in positives], "neg_scores": [draw.random() for _ in row["neg"]]}
        rows.append(row)
    return rows


def write_rows(path, rows, texts=()):
    """Write rows that have passages as texts to an .arrow file. Its folder gets the store: `texts`, then all others."""
    position = {text: number for number, text in enumerate(texts)}
    rows = [row | {side: [position.setdefault(text, len(position)) for text in row[side]] for side in ("pos", "neg")}
            for row in rows]
    path.parent.mkdir(exist_ok=True)
    write_rows_by_id(path, rows, write_passages(path.with_name(PASSAGES), position), "pos_scores" in rows[0])
    return path


def changed_rows(path, change):
    """Put what `change` makes of its rows (a list of dicts, passages by their texts) into a file of rows by id.

    Texts that are new come behind the others in the store, as if the file had been written with them.
    """
    rows = read_rows(path)
    write_rows(path, change(list(rows)), rows.passages["text"].to_pylist())


def training_folder(folder):
    """Fill a folder with the models `bert` and `bert_dropout`, the training files ROWS and SCORED_ROWS, and the
    collection `data`, whose 20 dev queries are answered among 200 passages.
    """
    trainable_bert(folder / "bert")
    trainable_bert(folder / "bert_dropout", dropout=0.1)
    rows = training_rows()
    write_rows(folder / ROWS, rows)
    write_rows(folder / SCORED_ROWS, training_rows(scores=True))
    number = {text: str(place) for place, text in enumerate(passages(200))}
    write_collection(folder / "data", Collection(
        {row["id"]: row["query"] for row in rows[:20]}, {place: text for text, place in number.items()},
        {row["id"]: {number[text]: 1 for text in row["pos"]} for row in rows[:20]},
        {row["id"]: "dev" for row in rows[:20]}))
    return folder


def use(**changes):
    """How the tiny models are used."""
    return EncoderConfig(**{"label": "", "title": "", "name": "", "pooling": "cls", "query_prompt": "find: ",
                            "passage_prompt": "", "query_max_len": 16, "passage_max_len": 48} | changes)


def rows_of(tiny, scores=False):
    return read_rows(tiny / (SCORED_ROWS if scores else ROWS), teacher=scores)


def prepared(tiny, output, **changes):
    """The folder `output` with the settings of a training of 30 steps over two epochs; `changes` go to its
    TrainingSettings or their EncoderConfig, and `base` is the initial model."""
    config = use(name=str(changes.pop("base", tiny / "bert")), **{
        name: changes.pop(name) for name in [*changes] if name in EncoderConfig.__dataclass_fields__})
    values = {"label": "tiny", "kind": "bi_encoder", "encoder": config, "training_file": tiny / ROWS,
              "data": "", "train_group_size": 4, "temperature": 0.05, "batch_size": 4, "learning_rate": 1e-4,
              "epochs": 2.0, "seed": 3, "logging_steps": 5, "cpu": True, "save_steps": 10} | changes
    training = TrainingSettings(**values | {name: str(values[name]) for name in ("training_file", "data")})
    output.mkdir(parents=True, exist_ok=True)
    write_settings(output, training)
    return output


def train_until(folder, step):
    """Train, and stop before a step as Ctrl-C does."""
    from embedding_finetune.training import worker  # takes seconds to import

    original = worker.Trainer._checked

    def checked(self, loss):
        if self.state.global_step + 1 == step:
            raise KeyboardInterrupt
        return original(self, loss)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worker.Trainer, "_checked", checked)
        worker.train(folder)


def dev(tiny):
    return {"data": tiny / "data", "dev_corpus_size": 60, "dev_steps": 7}


def parameters(folder):
    return load_file(folder / "model.safetensors")


def curve(folder):
    """What the log says of the training itself: step, loss and learning rate."""
    return [value for row in read_log(folder) if "loss" in row
            for value in (row["step"], row["loss"], row["learning_rate"])]
