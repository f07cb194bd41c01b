"""Search and serve, as a user meets them: seconds of a cold search, and the server under load.

    PROFILE=demo python benchmarks/bench_serve.py [--system LABEL] [--requests 1000] [--clients 32] [--singles 100]

It needs a finished experiment (make demo). Clients are threads of this process, each with one connection that it keeps;
every request has another query of the data set. In addition, in the same run and without a server: one `encode` call a
query, by sentence-transformers and by this package. The server and the clients share the cores. On a machine that
others load, too, compare the processor's seconds (cpu_ratio), under OMP_NUM_THREADS=1. The last line of standard output
is one JSON object.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 5
sys.path.insert(0, str(ROOT))


def started(system):
    """A server process on a free port, and that port, once it listens."""
    command = [sys.executable, "-m", "embedding_finetune", "serve", "--port", "0", "--system", system]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if found := re.search(r"running on http://[\d.]+:(\d+)", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, int(found[1])
    sys.exit("the server did not start")


def load(port, queries, clients):
    """Ask all queries by so many clients; returns (seconds of each answer, number of errors, seconds in all)."""
    waiting, times, errors = iter(queries), [], []

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for query in waiting:
            began = time.perf_counter()
            connection.request("GET", "/search?" + urlencode({"q": query, "k": 5}))
            answer = connection.getresponse()
            body = answer.read()
            times.append(time.perf_counter() - began)
            if answer.status != 200 or len(json.loads(body)["hits"]) != 5:
                errors.append(body)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, len(errors) + len(queries) - len(times), time.perf_counter() - began


def rate(encode, queries):
    """Milliseconds a query, one call each, by the clock and of the processor."""
    encode(queries[0])
    began, cpu = time.perf_counter(), time.process_time()
    for query in queries:
        encode(query)
    return [1000 * spent / len(queries) for spent in (time.perf_counter() - began, time.process_time() - cpu)]


def used(process):
    """Seconds of the processor that a process has used (Linux)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--system")
    for name, default in (("requests", 1000), ("clients", 32), ("singles", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    from embedding_finetune.files import read_jsonl
    from embedding_finetune.serving.available import default_label
    from embedding_finetune.serving.index import open_index
    from embedding_finetune.settings import Settings

    settings = Settings.load()
    system = options.system or default_label(settings)
    open_index(settings, system)
    texts = list(dict.fromkeys(row["text"] for row in read_jsonl(settings.data_dir / "queries.jsonl")))
    queries = (texts * -(-options.requests // len(texts)))[:options.requests]
    search = [sys.executable, "-m", "embedding_finetune", "search", queries[0], "--system", system, "--json"]
    cold = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(search, cwd=ROOT, check=True, capture_output=True)
        cold.append(time.perf_counter() - began)
    from sentence_transformers import SentenceTransformer

    from embedding_finetune.models.encoder import Encoder
    from embedding_finetune.models.encoder_config import load_encoder_config

    config = load_encoder_config(settings, system)
    other, ours = SentenceTransformer(config.name), Encoder(config)
    loops = {"sentence_transformers": lambda text: other.encode_query(text, show_progress_bar=False),
             "encoder": lambda text: ours.encode_queries([text])}
    times, errors, seconds, cpu, singles = [], 0, 0, 0, {name: [] for name in loops}
    server, port = started(system)
    try:
        load(port, texts[-64:], options.clients)
        for turn in range(ROUNDS):  # in turns: a processor that others share is not the same from minute to minute
            before = used(server)
            measured = load(port, queries[turn::ROUNDS], options.clients)
            cpu += used(server) - before
            times, errors, seconds = times + measured[0], errors + measured[1], seconds + measured[2]
            for name, encode in loops.items():
                singles[name].append(rate(encode, queries[turn:options.singles:ROUNDS]))
    finally:
        server.terminate()
        server.wait()
    cpu = 1000 * cpu / len(times)
    singles = {name: tuple(map(statistics.mean, zip(*found))) for name, found in singles.items()}
    singles = {name: (1000 / wall, each) for name, (wall, each) in singles.items()}
    percentiles = statistics.quantiles(times, n=100)
    served = len(times) / seconds
    print(f"{system}: cold search {', '.join(f'{second:.2f}' for second in cold)} s; {len(times)} requests of "
          f"{options.clients} clients: {served:.0f} a second; one call a query: "
          + ", ".join(f"{name} {value:.0f}" for name, (value, _) in singles.items()) + " a second")
    ratios = {f"throughput_ratio_{name}_loop": round(served / value, 2) for name, (value, _) in singles.items()}
    ratios |= {f"cpu_ratio_{name}_loop": round(each / cpu, 2) for name, (_, each) in singles.items()}
    print(json.dumps({"search_cold_seconds": round(statistics.median(cold), 2), "requests": len(times),
                      "errors": errors, "p50_ms": round(1000 * percentiles[49]),
                      "p99_ms": round(1000 * percentiles[98]), "requests_per_second": round(served, 1),
                      "cpu_ms_per_request": round(cpu, 1), **ratios}))


if __name__ == "__main__":
    main()
