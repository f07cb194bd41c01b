"""A soak of the server: it is asked for a while, as its files change, it is killed, and some clients are rude.

    python -m faults soak [--minutes 30] [--page tests/faults/RESULTS.md]    which `make soak` calls
    python -m faults soak --quick              some faults once, with a less patient server, as `make test-long` has it
    python -m faults soak --quick --plant      and then with a bug in the server: it must be found

Every answer is compared with the one that exact.py computes without server and index. While an operator changes data or
model, an answer is to be wholly of the old or wholly of the new ones; when these are in use, of the new ones alone. In
the last part of the time the server is not killed any more, and its memory is looked at.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from finished import evaluate
from tiny import build, tiny_bert, tiny_pairs, tiny_texts

from embedding_finetune.files import write_jsonl
from embedding_finetune.serving.index import open_index
from embedding_finetune.settings import ROOT, TABLE, Settings

from .clients import Clients
from .exact import LABELS, exact_answers, same
from .report import put, soak_section
from .served import PLANT, QUICK, Server
from .steps import environment

A, B, C = (7, 1), (8, 1), (8, 2)  # states of data and model: seeds of half of the pairs, and of the weights
NEXT = {A: [B], B: [A, C], C: [B]}
KILLS = 0.3  # of the time, after which the server is not killed any more
SETTLED = 60  # seconds in which a change is to be in use


def pairs_of(state):
    """120 pairs, the first half of which all states share."""
    return tiny_pairs(120)[:60] + tiny_pairs(120, state[0])[60:]


class Soak:
    """An experiment below a folder, the server over it, its clients, and an operator."""

    def __init__(self, folder, quick):
        self.folder, self.quick, self.rng, self.faults = folder, quick, random.Random(0), Counter()
        self.look, self.patience, self.lasting = (4, 4, 3) if quick else (2, 10, 10)  # LOOK and PATIENCE of the server
        for name in TABLE:
            os.environ.pop(name, None)
        shutil.copy(ROOT / "profiles/recipes.toml", folder)
        os.environ |= environment(folder) | {"OVERWRITE": "1", "RECIPE_FILE": str(folder / "recipes.toml")}
        for seed in {seed for _, seed in NEXT}:
            tiny_bert(folder / f"model-{seed}", tiny_texts(pairs_of(A) + pairs_of(B)), seed=seed)
        shutil.copytree(folder / "model-1", folder / "model")
        self.settings, self.truth = Settings.load(), {}
        queries = sorted({opening + row["query"] for row in pairs_of(A) + pairs_of(B)
                          for opening in ("", "tell me ", "pray, ")})
        for state in (B, A) if quick else (C, B, A):
            self.become(state)
            self.truth[state] = exact_answers(self.settings, queries)

    def start(self, clients, think, planted=False):
        """A server, and its clients."""
        for label in LABELS:
            open_index(self.settings, label)
        self.server = Server(self.folder / "log", "\n".join([QUICK if self.quick else "", PLANT if planted else ""]))
        self.clients = Clients(self.server, self.truth, self.state, think)
        self.server.start()
        self.settle(self.state)  # all indexes are open
        self.clients.start(clients)

    def end(self):
        self.server.sample()
        self.terminate()
        self.clients.stop()
        for line in self.server.failures():
            self.clients.complain(f"in the log: {line}")

    def run(self, minutes, pause, kinds=None):
        """Faults in a random order with pauses between them, for so many minutes; each once where these are 0."""
        change = self.change
        faults = {"malformed": self.clients.malformed, "vanish": self.clients.vanish, "hang": self.hang,
                  "burst": self.burst, "change": change, "back": lambda: change(back=True),
                  "recipes": lambda: change(broken=True), "SIGKILL": self.kill, "SIGTERM": self.restart,
                  "change and SIGKILL": lambda: change(killed=True)}
        began, last = time.monotonic(), 0
        while last <= 60 * minutes:
            names = [name for name in kinds or faults if last <= KILLS * 60 * minutes or "SIG" not in name]
            for name in self.rng.sample(names, len(names)):
                if last > 60 * minutes > 0:
                    return
                faults[name]()
                self.faults[name] += 1
                self.clients.steady = True
                self.wait(pause)
                self.clients.steady = False
                last = time.monotonic() - began

    def wait(self, seconds):
        """Let time pass, and look at the server each second."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.server.sample(every=1)
            time.sleep(min(0.2, left))

    # -- the operator --

    def become(self, state):
        """Build and measure the data of a state over the last ones, and put its weights in the place of the last."""
        write_jsonl(self.folder / "pairs.jsonl", pairs_of(state))
        beside = self.folder / "model" / ".weights"
        shutil.copyfile(self.folder / f"model-{state[1]}" / "model.safetensors", beside)
        beside.rename(self.folder / "model" / "model.safetensors")
        build(self.settings, labels=())
        evaluate(self.settings, "bm25", "reference")
        self.state = state

    def change(self, back=False, broken=False, killed=False):
        """To another state. `back`: and to the one before at once; `broken`: after recipes that were half written for a
        while; `killed`: with the server killed in the middle."""
        old, new = self.state, self.rng.choice(NEXT[self.state][:1 if self.quick else None])
        killer = threading.Timer(self.rng.random(), self.kill)
        self.clients.accepted = (old, new)
        if broken:
            recipes = (self.folder / "recipes.toml").read_text()
            (self.folder / "recipes.toml").write_text(recipes[:1000] + "[")
            self.wait(3 * self.look)
            (self.folder / "recipes.toml").write_text(recipes)
        if killed:
            killer.start()
        self.become(new)
        if back:
            self.become(old)
        self.search(self.rng.choice(["", "function", "command"]) if not self.quick else "function")
        if killed:
            killer.join()
        self.settle(old if not back else new)

    def search(self, by):
        """Make the new indexes beside the server, by the search command or the function behind it, and look at what is
        found; or leave it to the server to see the change by itself."""
        query, hits = self.rng.choice(self.clients.queries), None
        for label in LABELS if by else ():
            if by == "function":
                [hits] = open_index(self.settings, label).answer([query], 5)
            else:
                said = subprocess.run([sys.executable, "-m", "embedding_finetune", "search", query, "--system", label,
                                       "-k", "5", "--json"], cwd=ROOT, capture_output=True, text=True)
                hits = json.loads(said.stdout) if said.returncode == 0 else []
            if not same(hits, self.truth[self.state][label][query]):
                self.clients.complain(f"{label}: a search by {by} answers {query!r} otherwise: {hits}")

    def settle(self, other):
        """Wait until for a while all labels have answered as the files have it now, and not as in the other state."""
        old, new, since = self.truth[other], self.truth[self.state], time.monotonic()
        began = since
        query = max(self.clients.queries, key=lambda query: sum(old[label][query] != new[label][query]
                                                                for label in LABELS))
        while time.monotonic() < since + self.lasting and not (self.quick and self.clients.wrong):
            found = {label: self.clients.ask(label, query) for label in LABELS}
            if not all(status == 200 and same(json.loads(body)["hits"], new[label][query])
                       for label, (status, body) in found.items()):
                since = time.monotonic()
            if since > began + SETTLED:
                return self.clients.complain(f"{SETTLED} s after a change the old is in use: {found}"[:600])
            self.wait(0.2)
        self.clients.accepted = (self.state,)

    # -- faults --

    def kill(self):
        self.server.end(signal.SIGKILL)
        time.sleep(1)
        self.server.start()

    def terminate(self):
        """End the server in the middle of requests, with clients that hang."""
        hanging = self.clients.hang()
        burst = self.clients.send_burst(100)
        if not self.server.end(signal.SIGTERM, self.patience + 5):
            self.clients.complain("SIGTERM did not end the server")
        self.clients.judge_burst(*burst, ending=True)
        for connection in hanging:
            connection.close()

    def restart(self):
        self.terminate()
        self.server.start()

    def burst(self):
        self.clients.judge_burst(*self.clients.send_burst(100 if self.quick else 400))

    def hang(self):
        self.clients.hang_for(self.patience)


def main(words):
    parser = argparse.ArgumentParser(prog="python -m faults soak", description="A soak of the server.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--think", type=float, default=0.3, help="seconds between two requests of a client, on average")
    parser.add_argument("--page", type=Path, help="the page that gets the section")
    parser.add_argument("--quick", action="store_true", help="some faults once, and a less patient server")
    parser.add_argument("--plant", action="store_true", help="a bug in the server afterwards: it must be found")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), options.quick)
        soaked(soak, options, ["malformed", "vanish", "hang", "burst", "change"] if options.quick else None)
        section, wrong = soak_section(soak), soak.clients.wrong
        print(section)
        if options.page:
            put(options.page, section)
        if options.plant:
            options.minutes = 0
            soaked(soak, options, ["change"], planted=True)
            print("planted: old and new are mixed: " + ("found" if soak.clients.wrong else "NOT FOUND"))
            wrong = wrong or not soak.clients.wrong
    return bool(wrong)


def soaked(soak, options, kinds, planted=False):
    soak.start(options.clients, options.think, planted)
    try:
        soak.run(options.minutes * (not options.quick), 0.5 if options.quick else 15, kinds)
    finally:
        soak.end()
