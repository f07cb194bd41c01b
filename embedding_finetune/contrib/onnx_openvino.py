"""Export of a model to ONNX or OpenVINO in float32, int8 or bfloat16, with its size, speed and quality.

    python -m embedding_finetune export LABEL [FORM ..]    FORM: onnx, onnx-int8, openvino, openvino-int8,
                                                            openvino-bf16; default: all that this processor supports

OUTPUT_DIR/LABEL-FORM is a model folder with the same pooling, prompts and lengths. Its name is a label like any other,
and sentence-transformers loads it with `backend=` (docs/smaller.md). The results of each form are saved and enter the
comparison. OUTPUT_DIR/results/smaller_LABEL.md has size, speed and the paired difference to LABEL.

int8 is static post-training quantisation of weights and activations by NNCF (SmoothQuant, Xiao et al., ICML 2023, and
bias correction), calibrated on passages of the training split. Unlike dynamic quantisation, nothing depends on the
batch: a text always has the same vector.
"""

import logging
import shutil
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from embedding_finetune.artifacts.manifest import COMPILED_RECORD, MODEL_CARD, write_record
from embedding_finetune.artifacts.provenance import stale_reason
from embedding_finetune.artifacts.staging import staged_dir
from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.evaluate import model_metadata
from embedding_finetune.evaluation.metrics import mean, per_query
from embedding_finetune.evaluation.results import inputs_of, save_result
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.evaluation.tables import METRIC
from embedding_finetune.files import (
    CommandLine,
    UserError,
    atomic_write,
    content_hash,
    may_overwrite,
    one_line,
)
from embedding_finetune.hub import load
from embedding_finetune.labels import COMPILED_FORMATS
from embedding_finetune.models.compiled_model import GRAPHS, has_bf16, import_silently, openvino_core
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import (
    compiled_record,
    is_compiled,
    load_encoder_config,
    model_identity,
)
from embedding_finetune.models.modeling import DenseLayers, load_encoder
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.retrieval.known_systems import find_system
from embedding_finetune.settings import SELECTION_METRIC, Settings, display_value
from embedding_finetune.training.export import SAMPLES, write_encoder_config
from embedding_finetune.training.model_card import METRICS_HEADING
from embedding_finetune.training.provenance import check_trained

CALIBRATION, TIMED_PASSAGES, TIMED_QUERIES, ROUNDS = 300, 256, 50, 3
CARD = """# {name}

The model {label}, exported to {form}, with the same pooling, prompts and lengths, which are in its files.

```python
from sentence_transformers import SentenceTransformer   # pip install "sentence-transformers[{kind}]"
model = SentenceTransformer(PATH, backend="{kind}")
```

{heading}

Not evaluated yet.
"""


def runs_here(form):
    """Whether this processor supports a form."""
    return not form.endswith("bf16") or has_bf16()


def make(settings, encoder_config, form, texts, work):
    """Export the model of an EncoderConfig to OUTPUT_DIR/LABEL-FORM, unless it is current; returns the folder.

    `texts` are the int8 calibration data; `work` is a folder for graphs that the forms share. Raises UserError when the
    folder holds another export (OVERWRITE=1 replaces it) or another model, and when the export fails.
    """
    folder = settings.paths.model(f"{encoder_config.label}-{form}")
    inputs = {"form": form, "model": model_identity(encoder_config), "calibration": content_hash(texts)}
    record = compiled_record(folder)
    reason = stale_reason(record and record["inputs"], inputs)
    if reason is None:
        print(f"{display_value(folder)} is already made from these weights: kept", flush=True)
        return folder
    if folder.exists() and not record:
        raise UserError(f"{display_value(folder)} is not a compiled model: move it out of the way")
    if folder.exists() and not may_overwrite():
        raise UserError(f"{display_value(folder)} was made from other weights or with another configuration "
                        f"({reason}); OVERWRITE=1 replaces it")
    print(f"exporting {display_value(folder)}", flush=True)
    with staged_dir(folder, "compiled model", replace=True) as partial:
        _export(encoder_config, form, texts, work, partial)
        kind, _, numbers = form.partition("-")
        card = CARD.format(name=folder.name, label=encoder_config.label, form=form, kind=kind, heading=METRICS_HEADING)
        (partial / MODEL_CARD).write_text(card, encoding="utf-8")
        graph = [str(file.relative_to(partial)) for file in sorted((partial / kind).iterdir())]
        write_record(partial / COMPILED_RECORD, inputs, graph, format=kind,
                     precision="bf16" if numbers == "bf16" else "f32", label=encoder_config.label,
                     training_data_note=encoder_config.training_data_note)
    return folder


def _export(encoder_config, form, texts, work, folder):
    """Write graph, tokenizer and configuration of a form into an empty folder; arguments as for `make`."""
    kind, _, numbers = form.partition("-")
    graph = folder / GRAPHS[kind]
    graph.parent.mkdir()
    tokenizer = load("AutoTokenizer", encoder_config.name, encoder_config.trusted)
    source = _traced(encoder_config, tokenizer, work / "model.onnx")
    if numbers == "int8":
        source = _quantize(encoder_config, tokenizer, texts, source, work / "int8.onnx")
    if kind == "onnx":
        shutil.copy(source, graph)
    else:
        import_silently("openvino").save_model(openvino_core().read_model(source), graph, compress_to_fp16=False)
    config = load("AutoConfig", encoder_config.name, encoder_config.trusted)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    dense = DenseLayers.load(encoder_config.name, encoder_config.dense)
    dense.save(folder)
    write_encoder_config(folder, config.hidden_size, replace(encoder_config, dense=dense.folders))


def _traced(config, tokenizer, path):
    """Export the encoder to `path` as a float32 ONNX graph, unless it exists; returns `path`.

    The graph maps the tokenizer's output to last_hidden_state. The tracing exporter is used: the newer one gives the
    same vectors but takes a minute instead of seconds.
    """
    if path.exists():
        return path
    model, _ = load_encoder(config.name, config.dense, config.trusted)
    model.eval()
    batch = dict(tokenizer(list(SAMPLES), padding=True, padding_side="right", return_tensors="pt"))

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *tensors):
            return self.model(**dict(zip(batch, tensors))).last_hidden_state

    free = {name: {0: "texts", 1: "tokens"} for name in (*batch, "last_hidden_state")}
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(Hidden().eval(), tuple(batch.values()), str(path), dynamo=False, dynamic_axes=free,
                              input_names=list(batch), output_names=["last_hidden_state"])
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{config.title} cannot be compiled to ONNX ({one_line(error)})") from None
    return path


def _quantize(config, tokenizer, texts, source, path):
    """Quantise the ONNX graph `source` to int8 at `path`, unless it exists; returns `path`."""
    if not path.exists():
        import onnx
        nncf = import_silently("nncf")

        def inputs(text):
            return dict(tokenizer([config.passage_prompt + text], truncation=True, max_length=config.passage_max_len,
                                  return_tensors="np"))

        nncf.set_log_level(logging.ERROR)
        quantised = nncf.quantize(onnx.load(source), nncf.Dataset(texts, inputs), subset_size=len(texts),
                                  model_type=nncf.ModelType.TRANSFORMER)
        onnx.save(quantised, path)
    return path


def lowest_cosine(one, other):
    """Lowest cosine between corresponding rows of two arrays (texts, dimensions)."""
    return float(((one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


def speeds(encoders, passages, queries, rounds=ROUNDS):
    """Passages per second in batches, and median milliseconds per single query, for each of `encoders` (by label).

    Takes the best of several rounds. The encoders alternate in each round, so that other load affects all of them.
    """
    found = {label: (0.0, np.inf) for label in encoders}
    for encoder in encoders.values():  # the first call loads the model
        encoder.encode_passages(passages[:8])
    for _ in range(rounds):
        for label, encoder in encoders.items():
            began, times = time.perf_counter(), []
            encoder.encode_passages(passages)
            rate = len(passages) / (time.perf_counter() - began)
            for query in queries:
                began = time.perf_counter()
                encoder.encode_queries([query])
                times.append(1000 * (time.perf_counter() - began))
            found[label] = max(found[label][0], rate), min(found[label][1], float(np.median(times)))
    return found


def measure(settings, collection, label, folders):
    """Evaluate LABEL and its compiled forms and save the results of the forms; returns a table with one row each.

    Raises UserError, and removes the folder, when a float32 graph gives different vectors (cosine below 0.9999).
    """
    test, dev, cache = collection.split("test"), collection.split("dev"), settings.paths.cache
    configs = {name: load_encoder_config(settings, name) for name in (label, *(folder.name for folder in folders))}
    runs, frames, vectors, lowest = {}, {}, {}, {}
    for name, config in configs.items():
        dense = Dense(Encoder(config, settings.encode_batch_size, cache)).index(test.corpus)
        runs[name] = {part: dense.search(of.queries, copies=of.copies) for part, of in (("test", test), ("dev", dev))}
        frames[name], vectors[name] = per_query(test.qrels, runs[name]["test"]), dense.vectors
        lowest[name] = lowest_cosine(dense.vectors, vectors[label])
        if name.endswith(("-onnx", "-openvino")) and not lowest[name] >= 0.9999:
            shutil.rmtree(settings.paths.model(name))
            raise UserError(f"{name} gives different vectors from {label} (cosine {lowest[name]:.4f}): not kept")
    draw = settings.rng().permutation
    passages = [list(test.corpus.values())[row] for row in draw(len(test.corpus))[:TIMED_PASSAGES]]
    queries = [list(test.queries.values())[row] for row in draw(len(test.queries))[:TIMED_QUERIES]]
    encoders = {name: Encoder(config, settings.encode_batch_size) for name, config in configs.items()}
    speed = speeds(encoders, passages, queries)
    rows = add_significance([{"label": name, "metrics": mean(frame)} for name, frame in frames.items()], frames,
                            [(name, label) for name in configs if name != label])
    table = []
    for row in rows:
        name, encoder = row["label"], encoders[row["label"]]
        cost = {"mb": _megabytes(encoder.config.name), "passages_per_second": speed[name][0],
                "ms_per_query": speed[name][1], "lowest_cosine": lowest[name]}
        if name != label:
            system = find_system(settings, name)
            save_result(settings, collection, system, runs[name], inputs=inputs_of(settings, system),
                        **model_metadata(settings, encoder.config), **cost)
        table.append({"model": name, "MB": f"{cost['mb']:.0f}", "passages/s": f"{cost['passages_per_second']:.0f}",
                      "ms per query": f"{cost['ms_per_query']:.1f}", "lowest cosine": f"{cost['lowest_cosine']:.4f}",
                      **{metric: _cell(row, label, metric) for metric in (METRIC, SELECTION_METRIC)}})
    return pd.DataFrame(table)


def _megabytes(folder):
    weights = (path for path in Path(folder).rglob("*") if path.suffix in (".safetensors", ".onnx", ".xml", ".bin"))
    return sum(path.stat().st_size for path in weights) / 1e6


def _cell(row, label, metric):
    pair, value = row["against"].get(label, {}).get(metric), f"{row['metrics'][metric]:.3f}"
    return f"{value}, {pair['difference']:+.3f} [{pair['ci95'][0]:+.3f}, {pair['ci95'][1]:+.3f}]" if pair else value


def export_compiled(settings, label, forms=()):
    """Export and evaluate the forms of a label, by default all that this processor supports; returns the table.

    Raises UserError as `make` and `measure` do, and for unknown or unsupported forms.
    """
    forms = forms or [*filter(runs_here, COMPILED_FORMATS)]
    for form in forms:
        if form not in COMPILED_FORMATS:
            raise UserError(f"there is no form {form!r}: choose from {', '.join(COMPILED_FORMATS)}")
        if not runs_here(form):
            raise UserError("this processor has no instructions for bfloat16: choose from "
                            f"{', '.join(filter(runs_here, COMPILED_FORMATS))}")
    if is_compiled(settings, label):
        raise UserError(f"{label} is a compiled model: give the label of the model it was made from")
    check_trained(settings, label)
    collection, config = read_data(settings), load_encoder_config(settings, label)
    train = collection.split("train")
    ids, _ = train.positive_pool()
    drawn = settings.rng().permutation(len(ids))[:CALIBRATION]
    with tempfile.TemporaryDirectory() as work:
        texts = [train.corpus[ids[row]] for row in drawn]
        folders = [make(settings, config, form, texts, Path(work)) for form in forms]
    table = measure(settings, collection, label, folders)
    with atomic_write(settings.paths.results / f"smaller_{label}.md") as file:
        file.write(table.to_markdown(index=False, disable_numparse=True) + "\n")
    return table


def main():
    """Run the `export` command."""
    parser = CommandLine("export", "Export a model to ONNX and OpenVINO, and compare size, speed and metrics with it.")
    parser.add_argument("label", metavar="LABEL", help="label of the model")
    parser.add_argument("forms", nargs="*", metavar="FORM",
                        help=f"{', '.join(COMPILED_FORMATS)} (default: all that this processor supports)")
    options = parser.parse_args()
    table = export_compiled(Settings.load(), options.label, options.forms)
    print(table.to_markdown(index=False, disable_numparse=True))
