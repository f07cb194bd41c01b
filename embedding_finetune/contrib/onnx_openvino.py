"""Export of a model to ONNX or OpenVINO in float32, int8 or bfloat16, with its size, speed and quality.

    python -m embedding_finetune export LABEL [FORM ..]    FORM: onnx, onnx-int8, openvino, openvino-int8,
                                                            openvino-bf16; default: all that this processor supports

OUTPUT_DIR/LABEL-FORM is a model folder with the same pooling, prompts and lengths. Its name is a label like any other,
and sentence-transformers loads it with `backend=` (docs/deploy.md). The results of each form are saved and enter the
comparison. OUTPUT_DIR/results/smaller_LABEL.md has size, speed and the paired difference to LABEL.

int8 is static post-training quantisation of weights and activations by NNCF (SmoothQuant, Xiao et al., ICML 2023, and
bias correction), calibrated on passages of the training split. Unlike dynamic quantisation, nothing depends on the
batch: a text always has the same vector.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from embedding_finetune.artifacts.manifest import COMPILED_RECORD, MODEL_CARD, write_record
from embedding_finetune.artifacts.provenance import stale_reason
from embedding_finetune.artifacts.staging import staged_dir
from embedding_finetune.data.collection import Collection, read_data
from embedding_finetune.evaluation.evaluate import model_metadata
from embedding_finetune.evaluation.metrics import mean, per_query
from embedding_finetune.evaluation.results import inputs_of, part_of, save_result
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.evaluation.tables import METRIC
from embedding_finetune.files import CommandLine, UserError, atomic_write, content_hash, may_overwrite, one_line
from embedding_finetune.hub import load
from embedding_finetune.labels import COMPILED_FORMATS
from embedding_finetune.models import compiled_model
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import (
    EncoderConfig,
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


def runs_here(form: str) -> bool:
    """Whether this processor supports a form."""
    return not form.endswith("bf16") or compiled_model.has_bf16()


def make(settings: Settings, config: EncoderConfig, form: str, texts: Sequence[str], work: Path) -> Path:
    """Export the model of an EncoderConfig to OUTPUT_DIR/LABEL-FORM, unless it is current; returns the folder.

    `texts` are the int8 calibration data; `work` is a folder for graphs that the forms share. Raises UserError when the
    folder holds another export (OVERWRITE=1 replaces it) or another model, and when the export fails.
    """
    folder = settings.paths.model(f"{config.label}-{form}")
    inputs = {"form": form, "model": model_identity(config), "calibration": content_hash(texts)}
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
    kind, _, numbers = form.partition("-")
    with staged_dir(folder, "compiled model", replace=True) as partial:
        _export(config, form, texts, work, partial)
        card = CARD.format(name=folder.name, label=config.label, form=form, kind=kind, heading=METRICS_HEADING)
        (partial / MODEL_CARD).write_text(card, encoding="utf-8")
        graph = [str(file.relative_to(partial)) for file in sorted((partial / kind).iterdir())]
        write_record(partial / COMPILED_RECORD, inputs, graph, format=kind,
                     precision="bf16" if numbers == "bf16" else "f32", label=config.label,
                     training_data_note=config.training_data_note)
    return folder


def _export(config, form, texts, work, folder):
    """Write graph, tokenizer and configuration of a form into an empty folder; arguments as for `make`."""
    kind, _, numbers = form.partition("-")
    graph = folder / compiled_model.GRAPHS[kind]
    graph.parent.mkdir()
    tokenizer = load("AutoTokenizer", config.name, config.trusted)
    source = work / ("int8.onnx" if numbers == "int8" else "model.onnx")
    if not (work / "model.onnx").exists():
        _trace(config, tokenizer, work / "model.onnx")
    if not source.exists():
        _quantize(config, tokenizer, texts, work / "model.onnx", source)
    if kind == "onnx":
        shutil.copy(source, graph)
    else:
        model = compiled_model.openvino_core().read_model(source)
        compiled_model.import_silently("openvino").save_model(model, graph, compress_to_fp16=False)
    model_config = load("AutoConfig", config.name, config.trusted)
    model_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    dense = DenseLayers.load(config.name, config.dense)
    dense.save(folder)
    write_encoder_config(folder, model_config.hidden_size, replace(config, dense=dense.folders))


def _trace(config, tokenizer, path):
    """Export the encoder to a float32 ONNX graph from the tokenizer's output to last_hidden_state."""
    model, _ = load_encoder(config.name, config.dense, config.trusted)
    batch = dict(tokenizer(list(SAMPLES), padding=True, padding_side="right", return_tensors="pt"))
    output = {"last_hidden_state": {0: "texts", 1: "tokens"}}
    try:
        compiled_model.export_onnx(path, batch, lambda **inputs: model(**inputs).last_hidden_state, output, model)
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{config.title} cannot be exported to ONNX ({one_line(error)})") from None


def _quantize(config, tokenizer, texts, source, path):
    """Quantise the ONNX graph `source` to int8 at `path`."""
    import onnx
    nncf = compiled_model.import_silently("nncf")

    def inputs(text):
        return dict(tokenizer([config.passage_prompt + text], truncation=True, max_length=config.passage_max_len,
                              return_tensors="np"))

    nncf.set_log_level(logging.ERROR)
    onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(texts, inputs), subset_size=len(texts),
                            model_type=nncf.ModelType.TRANSFORMER), path)


def speeds(encoders: dict[str, Encoder], passages: Sequence[str], queries: Sequence[str],
           rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Passages per second in batches, and median milliseconds per single query, for each of `encoders` (by label).

    Takes the best of several rounds. The encoders alternate in each round, so that other load affects all of them.
    """
    def seconds(encode, texts):
        began = time.perf_counter()
        encode(texts)
        return time.perf_counter() - began

    found = {label: (0.0, float("inf")) for label in encoders}
    for encoder in encoders.values():  # the first call loads the model
        encoder.encode_passages(passages[:8])
    for _ in range(rounds):
        for label, encoder in encoders.items():
            rate = len(passages) / seconds(encoder.encode_passages, passages)
            latency = 1000 * float(np.median([seconds(encoder.encode_queries, [query]) for query in queries]))
            found[label] = max(found[label][0], rate), min(found[label][1], latency)
    return found


def measure(settings: Settings, collection: Collection, label: str, folders: Sequence[Path]) -> pd.DataFrame:
    """Evaluate LABEL and its compiled forms and save the results of the forms; returns a table with one row each.

    Raises UserError, and removes the folder, when a float32 graph gives different vectors (cosine below MIN_COSINE).
    """
    test = collection.split("test")
    parts = {part: part_of(settings, collection, find_system(settings, label), part) for part in ("test", "dev")}
    configs = {name: load_encoder_config(settings, name) for name in (label, *(folder.name for folder in folders))}
    runs, frames, vectors, costs = {}, {}, {}, {}
    for name, config in configs.items():
        dense = Dense(Encoder(config, settings.encode_batch_size, settings.paths.cache)).index(test.corpus)
        runs[name] = {part: dense.search(of.queries, copies=of.copies) for part, of in parts.items()}
        frames[name], vectors[name] = per_query(test.qrels, runs[name]["test"]), np.asarray(dense.vectors)
        lowest = compiled_model.lowest_cosine(vectors[name], vectors[label])
        if name.endswith(("-onnx", "-openvino")) and not lowest >= compiled_model.MIN_COSINE:
            shutil.rmtree(settings.paths.model(name))
            raise UserError(f"{name} gives different vectors from {label} (cosine {lowest:.4f}): not kept")
        costs[name] = {"mb": _megabytes(config.name), "lowest_cosine": lowest}
    for name, (rate, latency) in _speeds_of(settings, test, configs).items():
        costs[name] |= {"passages_per_second": rate, "ms_per_query": latency}
    for name in list(configs)[1:]:
        system = find_system(settings, name)
        save_result(settings, collection, system, runs[name], inputs=inputs_of(settings, system),
                    **model_metadata(settings, configs[name]), **costs[name])
    rows = add_significance([{"label": name, "metrics": mean(frame)} for name, frame in frames.items()], frames,
                            [(name, label) for name in configs if name != label])
    return pd.DataFrame([_table_row(row, label, costs[row["label"]]) for row in rows])


def _speeds_of(settings, test, configs):
    """`speeds` of the models of some EncoderConfigs (by label) on a sample of passages and queries, without a cache."""
    draw = settings.rng().permutation
    passages, queries = ([list(texts.values())[row] for row in draw(len(texts))[:count]]
                         for texts, count in ((test.corpus, TIMED_PASSAGES), (test.queries, TIMED_QUERIES)))
    encoders = {name: Encoder(config, settings.encode_batch_size) for name, config in configs.items()}
    return speeds(encoders, passages, queries)


def _megabytes(folder):
    weights = (path for path in Path(folder).rglob("*") if path.suffix in (".safetensors", ".onnx", ".xml", ".bin"))
    return sum(path.stat().st_size for path in weights) / 1e6


def _table_row(row, label, cost):
    cells = {"model": row["label"], "MB": f"{cost['mb']:.0f}", "passages/s": f"{cost['passages_per_second']:.0f}",
             "ms per query": f"{cost['ms_per_query']:.1f}", "lowest cosine": f"{cost['lowest_cosine']:.4f}"}
    for metric in (METRIC, SELECTION_METRIC):
        cells[metric] = f"{row['metrics'][metric]:.3f}"
        if pair := row["against"].get(label, {}).get(metric):
            low, high = pair["ci95"]
            cells[metric] += f", {pair['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return cells


def export_compiled(settings: Settings, label: str, forms: Sequence[str] = ()) -> pd.DataFrame:
    """Export and evaluate the forms of a label, by default all that this processor supports; returns the table.

    Raises UserError as `make` and `measure` do, and for unknown or unsupported forms.
    """
    supported = [*filter(runs_here, COMPILED_FORMATS)]
    for form in forms:
        if form not in COMPILED_FORMATS:
            raise UserError(f"there is no form {form!r}: choose from {', '.join(COMPILED_FORMATS)}")
        if form not in supported:
            raise UserError(f"this processor has no instructions for bfloat16: choose from {', '.join(supported)}")
    if is_compiled(settings, label):
        raise UserError(f"{label} is a compiled model: give the label of the model it was made from")
    check_trained(settings, label)
    collection, config = read_data(settings), load_encoder_config(settings, label)
    train = collection.split("train")
    ids, _ = train.positive_pool()
    drawn = settings.rng().permutation(len(ids))[:CALIBRATION]
    texts = [train.corpus[ids[row]] for row in drawn]
    with tempfile.TemporaryDirectory() as work:
        folders = [make(settings, config, form, texts, Path(work)) for form in forms or supported]
    table = measure(settings, collection, label, folders)
    with atomic_write(settings.paths.results / f"smaller_{label}.md") as file:
        file.write(table.to_markdown(index=False, disable_numparse=True) + "\n")
    return table


def main() -> None:
    """Run the `export` command."""
    parser = CommandLine("export", "Export a model to ONNX and OpenVINO, and compare size, speed and metrics with it.")
    parser.add_argument("label", metavar="LABEL", help="label of the model")
    parser.add_argument("forms", nargs="*", metavar="FORM",
                        help=f"{', '.join(COMPILED_FORMATS)} (default: all that this processor supports)")
    options = parser.parse_args()
    table = export_compiled(Settings.load(), options.label, options.forms)
    print(table.to_markdown(index=False, disable_numparse=True))
