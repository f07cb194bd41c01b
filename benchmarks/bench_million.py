"""A million passages through every step, and through SIGKILL: seconds and memory of each, and whether all comes out
equal.

    python benchmarks/bench_million.py [--passages 1000000] [--queries 1000] [--dimensions 384] [--kills 10]
        [--folder WORK]

The passages are made, not found: three sentences each, drawn from the passages of the pairs (PAIRS=file.jsonl, else
numpy's docstrings), along with those passages themselves. So there are many that nearly answer; metrics mean nothing,
sizes and times do. The model is a random BERT of 2 layers with a Dense layer up to `--dimensions`: it encodes fast,
its vectors as much room as others. The commands are those that a user types, each a process of its own. They run
once undisturbed; then anew, killed at random moments and started again. The last line of standard output is one JSON
object.
"""

import argparse
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from inputs import ROOT, read_rows

from embedding_finetune.artifacts.manifest import CHECKSUM

sys.path.insert(0, str(ROOT / "tests"))

SENTENCES = 3  # a passage
STEP = 0.6180339887498949  # of all combinations, from one passage to the next: far, and not soon back
NOTEBOOK = "from embedding_finetune.run import *; run_notebook(ROOT / {!r}, Settings.load().output_dir / 'notebooks')"
COMPARED = ("data/**/*", "output/runs/**/*.trec", "output/*.answer")


def recombined(rows, passages):
    """Yield so many texts of SENTENCES sentences of the rows' passages, each combination once."""
    texts = (text for row in rows for text in row["pos"])
    sentences = [sentence for text in texts for sentence in re.split(r"(?<=[.!?])\s+", text)]
    sentences = [some for some in dict.fromkeys(sentences) if 4 <= len(some.split()) <= 40]
    random.Random(0).shuffle(sentences)
    count = len(sentences) ** SENTENCES
    step = next(step for step in range(int(count * STEP), count) if math.gcd(step, count) == 1)
    for number in range(passages):
        place, chosen = number * step % count, []
        for _ in range(SENTENCES):
            place, rest = divmod(place, len(sentences))
            chosen.append(sentences[rest])
        yield " ".join(chosen)


def make_inputs(folder, options):
    """Write pairs, passages and model to the folder; returns the settings (environment) that read them."""
    from embedding_finetune.files import write_jsonl
    rows = read_rows(os.environ.get("PAIRS"))
    write_jsonl(folder / "pairs.jsonl", rows)
    write_jsonl(folder / "more.jsonl", ({"id": f"r{number}", "text": text}
                                        for number, text in enumerate(recombined(rows, options.passages))))
    subprocess.run([sys.executable, __file__, "--model", folder / "model", "--dimensions", str(options.dimensions)],
                   check=True, env=os.environ | {"PAIRS": str(folder / "pairs.jsonl")})
    return {"PROFILE": "demo", "DATASET": str(folder / "pairs.jsonl"), "CORPUS": str(folder / "more.jsonl"),
            "MAX_QUERIES": str(options.queries), "BASE_MODEL": str(folder / "model"), "BASE_POOLING": "auto",
            "PASSAGE_MAX_LEN": "32", "OUT_OF_DOMAIN_SETS": "", "RERANKERS": ""}


def make_model(folder, dimensions):
    """A random BERT of 2 layers and 64 dimensions, with a Dense layer to as many as wanted."""
    from sentence_transformers.sentence_transformer.modules import Dense
    from tiny import tiny_bert, tiny_texts

    from embedding_finetune.files import write_json
    tiny_bert(folder, tiny_texts(read_rows(os.environ.get("PAIRS"))))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    write_json(folder / "modules.json", [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())])
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 64, "pooling_mode": "mean"})
    (folder / "2_Dense").mkdir()
    Dense(64, dimensions, bias=False).save(str(folder / "2_Dense"))


def steps(query):
    """Name -> command, in their order; those of `search` print an answer."""
    def notebook(name):
        return [sys.executable, "-c", NOTEBOOK.format(name)]

    def search(label):
        return [sys.executable, "-m", "embedding_finetune", "search", query, "--system", label, "--json", "-k", "10"]

    return {"data": notebook("build_train_dataset.ipynb"), "BM25": notebook("build_eval_dataset.ipynb"),
            "encode": [sys.executable, "-m", "embedding_finetune", "encode", "raw"],
            "evaluate": notebook("eval_raw_bert.ipynb"),
            **{f"{what} {label}": search(label) for label in ("bm25", "raw", "hybrid_raw")
               for what in ("index", "search")}}


def run(command, folder, settings, name, lives=math.inf):
    """Run a command until it ends, or for so many seconds: (whether it ended, seconds, GB of its largest process)."""
    environment = os.environ | settings | {"PYTHONPATH": str(ROOT), "DATA_DIR": str(folder / "data"),
                                           "OUTPUT_DIR": str(folder / "output")}
    (folder / "output").mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(folder / "output" / f"{name}.answer" if "search" in name else os.devnull, "w") as answer, \
            open(folder / "log", "a") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=answer, stderr=log,
                                   start_new_session=True)
        killer = threading.Timer(min(lives, threading.TIMEOUT_MAX), os.killpg, (process.pid, signal.SIGKILL))
        killer.start()
        _, status, usage = os.wait4(process.pid, 0)
        killer.cancel()
    if status and not os.WIFSIGNALED(status):
        raise SystemExit(f"{name} failed:\n{(folder / 'log').read_text()[-3000:]}")
    return not status, time.monotonic() - began, usage.ru_maxrss * 1024 / 1e9


def undisturbed(folder, settings, commands):
    """Seconds and GB of each step."""
    seconds, memory = {}, {}
    for name, command in commands.items():
        _, seconds[name], memory[name] = run(command, folder, settings, name)
        print(f"{name:20} {seconds[name]:8.1f} s {memory[name]:8.2f} GB", flush=True)
    return seconds, memory


def interrupted(folder, settings, commands, seconds, kills):
    """All steps, killed so many times in all, the long ones more often; how often each was."""
    rng, died = random.Random(0), {}
    wanted = rng.choices(list(commands), weights=seconds.values(), k=kills)
    for name, command in commands.items():
        ended, left = False, wanted.count(name)
        while not ended:
            lives = rng.uniform(0, seconds[name] / wanted.count(name)) if left else math.inf
            ended, lived, _ = run(command, folder, settings, name, lives)
            left -= 1
            if not ended:
                died[name] = died.get(name, 0) + 1
                print(f"{name:20} killed after {lived:.1f} s", flush=True)
    return died


def differences(one, other):
    """Files that two runs do not have in common, to the byte, and results that say something else."""
    def files(folder):
        return {str(path.relative_to(folder)): path for pattern in COMPARED for path in folder.glob(pattern)
                if path.is_file()}

    def results(folder):
        found = {path.name: json.loads(path.read_text()) for path in (folder / "output" / "results").glob("*.json")}
        return {name: {key: value for key, value in result.items() if key not in ("settings", "finished", CHECKSUM)}
                for name, result in found.items()}

    here, there = files(one), files(other)
    unequal = [name for name in here.keys() | there.keys()
               if name not in here or name not in there or here[name].read_bytes() != there[name].read_bytes()]
    return sorted(unequal) + ["results"] * (results(one) != results(other))


def main():
    arguments = argparse.ArgumentParser()
    for name, default in {"passages": 1_000_000, "queries": 1000, "dimensions": 384, "kills": 10}.items():
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--folder", type=Path, help="where to work and leave all; else a temporary one")
    arguments.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.model:
        return make_model(options.model, options.dimensions)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        settings = make_inputs(folder, options)
        query = read_rows(folder / "pairs.jsonl")[0]["query"]
        commands = steps(query)
        seconds, memory = undisturbed(folder / "undisturbed", settings, commands)
        died, unequal = {}, []
        if options.kills:
            died = interrupted(folder / "interrupted", settings, commands, seconds, options.kills)
            unequal = differences(folder / "undisturbed", folder / "interrupted")
    print(*(f"differs: {name}" for name in unequal), sep="\n")
    print(json.dumps({"passages": options.passages, "kills": sum(died.values()), "killed": died,
                      "equal": not unequal, "peak_gb": round(max(memory.values()), 2),
                      "minutes": round(sum(seconds.values()) / 60, 1),
                      "seconds": {name: round(value, 1) for name, value in seconds.items()},
                      "gb": {name: round(value, 2) for name, value in memory.items()}}))


if __name__ == "__main__":
    main()
