"""A hub that fails while pairs and a model are loaded from it: errors, silence, half a file, a new revision .."""

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial

from hub import hub, hub_environment
from tiny import tiny_bert, tiny_msmarco, tiny_pairs, tiny_texts

from embedding_finetune.settings import ROOT, TABLE

from .bench import CLEAR, EQUAL, LOST, Trial

STEP = "load from a hub"
NAME, PAIRS = "bert-base-uncased", "namespace-Pt/msmarco"
FAULTS = {  # -> whether it stays
    "a hub's error (500)": (False, True), "a hub that is overloaded (503)": (False, True),
    "a hub that is silent": (False, True), "half a file": (False, True), "a slow hub": (True,),
    "a new revision": (False,)}
SLOW = 1  # second for each answer
# A process that has imported all and forks one for each line, the path for what that says; it answers with its status.
PROGRAM = """
import hashlib, os, signal, sys
import datasets, transformers.models.bert.modeling_bert
from embedding_finetune.data.cleaning import read_pairs
from embedding_finetune.files import run_command_line
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.settings import Settings

def main():
    settings = Settings.load("msmarco")
    queries = list(read_pairs(settings)[0].queries.values())
    vectors = Encoder(load_encoder_config(settings, "raw")).encode_queries(["when does the otter sleep"])
    print("loaded", hashlib.sha256(repr(queries).encode()).hexdigest(), hashlib.sha256(vectors.tobytes()).hexdigest())

for line in sys.stdin:
    if not (child := os.fork()):
        signal.alarm(600)
        os.dup2(os.open(line.strip(), os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 1)
        os.dup2(1, 2)
        run_command_line(main)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Fault:
    """What happens at the `at`-th request, and from then on where it is `lasting`; see Endpoint in tests/hub.py."""

    name: str
    at: int
    lasting: bool
    newer: dict  # repositories

    def strikes(self, number):
        return number == self.at or self.lasting and number > self.at

    def change(self, handler, status, headers, content):
        if self.name == "a new revision":
            handler.server.repositories = self.newer
        elif self.name == "a slow hub":
            time.sleep(SLOW)
        elif self.name == "half a file" and handler.command == "GET" and content:
            handler.close_connection = True
            headers, content = headers | {"Content-Length": str(len(content))}, content[:len(content) // 2]
        changed = {"a hub's error (500)": 500, "a hub that is overloaded (503)": 503, "a hub that is silent": None}
        return (changed[self.name], {}, b"") if self.name in changed else (status, headers, content)


class Loading:
    """A hub with two revisions of pairs and a model, and processes that load from it into a cache of their own."""

    def __init__(self, folder, endpoint):
        self.folder, self.endpoint, self.revisions = folder, endpoint, []
        for seed in (7, 8):
            rows = tiny_pairs(30, seed)
            self.revisions.append({"models": {NAME: tiny_bert(folder / f"model-{seed}", tiny_texts(rows), seed=seed)},
                                   "datasets": {PAIRS: tiny_msmarco(folder / f"pairs-{seed}", rows)}})
        environment = hub_environment(endpoint, folder / "cache", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        environment = {name: value for name, value in environment.items() if name not in ("LD_PRELOAD", *TABLE)}
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
        newer = self.load(self.revisions[1], anew=True)
        began = time.monotonic()
        first = self.load(self.revisions[0], anew=True)
        self.seconds, self.requests = time.monotonic() - began, len(endpoint.requests)
        self.truth = [line.split()[1:] for _, line, _ in (first, newer)]

    def load(self, revision, fault=None, anew=False):
        """(exit status, the last line of what was said, all of it) of a process, `anew`: with nothing in the cache."""
        if anew:
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
        self.endpoint.server.repositories, self.endpoint.server.fault = revision, fault
        self.endpoint.requests.clear()
        self.process.stdin.write(f"{self.folder / 'said'}\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        said = (self.folder / "said").read_text(errors="replace").strip()
        return status, said.rpartition("\n")[2], said

    def verdict(self, fault):
        """Equal: pairs and model are of a revision, each; refused: in one line, and once the hub is well, equal."""
        first, newer = self.truth
        status, line, said = self.load(self.revisions[0], fault, anew=True)
        if status == 0:
            found = line.split()[1:]
            right = all(one in of for one, of in zip(found, zip(first, newer), strict=True))
            return (EQUAL, "") if found == first or fault.newer and right else (LOST, f"it loaded another: {line}")
        if status != 1 or "Traceback" in said or not line.startswith("error: "):
            return LOST, f"status {status}: {said[-1500:]}"
        again = self.load(self.revisions[0])
        return (CLEAR, line) if again[1].split()[1:] == first else (LOST, f"again: {again[1]} (after: {line})")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def trials(bench):
    stack, folder = bench.laboratory.closing, bench.laboratory.home / "hub"
    loading = Loading(folder, stack.enter_context(hub({})))
    stack.callback(loading.close)
    bench.seconds[STEP] = loading.seconds
    for name, ways in FAULTS.items():
        for lasting in ways:
            for at in range(1, loading.requests + 1):
                fault = Fault(name, at, lasting, loading.revisions[1] if name == "a new revision" else None)
                yield Trial(name, STEP, f"request {at}{' and later ones' * lasting}",
                            partial(loading.verdict, fault))
