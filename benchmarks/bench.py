"""All benchmarks, one after another, into one file of figures and one page.

    python benchmarks/bench.py [negatives rows train encode search mining index million second serve demo questions gpu
                                bytes selection]

Each section is a script of its own, whose last line is a JSON object: benchmarks/results.json has them by section, with
machine and date, and benchmarks/results.md what a reader wants to know of them. What is not asked for, or fails, stays
as it was. `demo` runs the whole demo into an empty folder, `serve` asks the best model of PROFILE. Four are run where
they are named: `questions` (after `make demo`), `gpu`, `bytes` (after the trainings that docs/vector_bytes.py wants)
and `selection` (with the datasets in SETS). PAIRS=file.jsonl gives the pairs; let nothing else run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inputs import ROOT, hardware

from embedding_finetune.files import UserError, atomic_write, read_json, run_command_line, write_json

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.json", HERE / "results.md"
SECTIONS = {  # name -> (script, where it belongs in the results)
    "negatives": ("bench_negatives.py", "negatives"), "rows": ("bench_rows.py", "rows"),
    "train": ("bench_train.py", "train"), "encode": ("bench_encode.py", "encode"),
    "search": ("bench_search.py", "search"), "mining": ("bench_mining.py", "mining"),
    "index": ("bench_index.py", "search"), "million": ("bench_million.py", "million"),
    "second": ("bench_second.py", "second"), "serve": ("bench_serve.py", "serve"), "demo": ("", "demo"),
    "questions": ("bench_questions.py", "questions"), "gpu": ("bench_gpu.py", "gpu"),
    "bytes": ("../docs/vector_bytes.py", "bytes"), "selection": ("bench_selection.py", "selection")}
WHERE_NAMED = "questions", "gpu", "bytes", "selection"  # for these something must be there
SAID = {  # section -> figure -> what it is
    "negatives": {"ratio_tutorial_loop": "10 random negatives: times as fast as the tutorial's loop",
                  "ratio_tutorial_loop_50": "50 random negatives: the same"},
    "rows": {"write_seconds": "500,000 training rows of 10 out of 1 million passages: seconds to write, audit and all",
             "write_cpu_seconds": "the same: seconds of one core",
             "write_gb": "the same: GB at the peak, the collection included",
             "open_seconds": "the same: seconds to open",
             "read_json_seconds": "the same as JSON lines: seconds to read"},
    "train": {"steps_per_second_ratio_flagembedding": "training steps: times as fast as FlagEmbedding",
              "steps_per_second_ratio_mnrl": "the same: as sentence-transformers",
              "steps_per_second_ratio_cached_mnrl": "the same: as its gradient caching"},
    "encode": {"throughput_ratio_flagembedding": "encoding: times as fast as FlagEmbedding",
               "throughput_ratio_sentence_transformers": "encoding: times as fast as sentence-transformers",
               "share_of_limit": "encoding: share of what the machine's matrix products allow"},
    "search": {"time_ratio_bare_search": "exact search: time compared with the bare product with top-k",
               "ann_recall@10": "approximate search: share of the exact first ten",
               "ann_latency_ratio_exact": "approximate search: time compared with exact search",
               "ann_gb": "approximate search: GB of the index"},
    "mining": {"hours": "500,000 queries, 200 of a million vectors each, exactly: hours, by the first blocks",
               "gb": "the same: GB at the peak, the mapped vectors included"},
    "million": {"peak_gb": "a million passages from the pairs to an answer: GB of the largest step",
                "minutes": "the same: minutes", "kills": "the same, killed so many times and started again",
                "equal": "the same: whether all came out as without (1: yes)"},
    "second": {"late_ms": "30 passages by their tokens, ms with the query's encoding",
               "late_time_ratio_sentence_transformers": "the same: time compared with sentence-transformers",
               "cross_encoder_ms": "30 passages by a cross-encoder, ms",
               "cross_encoder_bf16_ms": "the same in bfloat16 (RERANKER_PRECISION), on a processor with AMX",
               "cross_encoder_time_ratio_sentence_transformers": "the same: time compared with sentence-transformers",
               "cross_encoder_share_of_limit": "the same: share of what the matrix products allow"},
    "serve": {"p50_ms": "server, 32 clients: median ms", "p99_ms": "server, 32 clients: ms of the slowest 1 %"},
    "demo": {"seconds": "make demo: seconds, with its trainings"},
    "questions": {"questions": "everyday questions about the demo's functions",
                  "recommended_hit@5": "answered in the first five hits of the recommended system",
                  "bm25_hit@5": "answered in the first five hits of BM25"},
    "gpu": {"ours_bf16_steps_per_second": "GPU, bert-base, the tutorial's settings in bf16: training steps a second",
            "flagembedding_bf16_steps_per_second": "GPU, the same by FlagEmbedding",
            "ours_bf16_gb": "GPU, the same: GB at the peak",
            "texts_per_second": "GPU, bert-base: texts encoded a second",
            "throughput_ratio_flagembedding": "GPU, encoding: times as fast as FlagEmbedding",
            "share_of_limit": "GPU, encoding: share of what the card's products of these shapes allow",
            "share_of_limit_computing": "GPU, encoding: the same without the tokenizer",
            "grad_cache_gb": "GPU, 128 queries x 9 texts of 128 tokens, GradCache: GB at the peak",
            "uncached_gb": "GPU, the same without"},
    "selection": {f"{way}_{number}{end}": f"{number} pairs, {what}: {which} regret in nDCG@10"
                  for number in (100, 300) for way, what in (("max_dev", "the best system on dev taken"),
                                                             ("default", "always BM25 + the untrained model"),
                                                             ("rule", "the recommended system"))
                  for end, which in (("", "mean"), ("_std", "standard deviation of the"))}}


def measure(section):
    """The figures of a section. Raises UserError when its script fails."""
    script, _ = SECTIONS[section]
    if section == "demo":
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            _run([sys.executable, "-m", "embedding_finetune", "run"], section, PROFILE="demo",
                 OUTPUT_DIR=f"{folder}/output", DATA_DIR=f"{folder}/data")
            return {"seconds": round(time.monotonic() - began)}
    return json.loads(_run([sys.executable, HERE / script], section).splitlines()[-1])


def _run(command, section, **more):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | more
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        lines = [print(line, end="", flush=True) or line for line in process.stdout]
    if process.returncode:
        raise UserError(f"the benchmark {section} failed (exit status {process.returncode}); what it said is above")
    return "".join(lines)


def merged(results, section, found):
    """The results with the figures of a section in their place, and with when and where they were measured."""
    place = SECTIONS[section][1]
    measured = {section: f"{time.strftime('%Y-%m-%d')}, {hardware()}"}
    return results | {place: results.get(place, {}) | found, "measured": results.get("measured", {}) | measured}


def page(results):
    """The page of figures, as Markdown."""
    lines = ["# How fast", "", "`make bench`, side by side in one run each; `results.json` has all figures.", "",
             "| | |", "|---|---|"]
    lines += [f"| {what} | {results[section][figure]:.4g} |" for section, figures in SAID.items()
              for figure, what in figures.items() if figure in results.get(section, {})]
    lines += ["", *(f"- {section}: {when}" for section, when in results.get("measured", {}).items()), ""]
    return "\n".join(lines)


def _section(name):
    """The name, if there is such a section; argparse's `choices` refuse to be given none at all."""
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(SECTIONS)}")
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", type=_section, metavar="SECTION", help=", ".join(SECTIONS))
    for section in parser.parse_args().sections or [name for name in SECTIONS if name not in WHERE_NAMED]:
        print(f"== {section}", flush=True)
        results = merged(read_json(RESULTS) or {}, section, measure(section))
        write_json(RESULTS, results)
        with atomic_write(PAGE) as file:
            file.write(page(results))


if __name__ == "__main__":
    run_command_line(main)
