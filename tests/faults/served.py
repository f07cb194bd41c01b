"""The server in a process of its own: started, ended in two ways, and looked at from outside."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from embedding_finetune.settings import ROOT

QUICK = "server.PATIENCE = server.LOOK = 4"
# A fusion keeps the index of words that it met first: after a change it ranks the passages of old and new data.
PLANT = ("from embedding_finetune.retrieval import fusion; kept, init = {}, fusion.HybridRetriever.__init__; "
         "fusion.HybridRetriever.__init__ = lambda self, bm25, dense, weight: "
         "init(self, kept.setdefault('bm25', bm25), dense, weight)")
STARTS = 180  # seconds, on a machine that does other things


def greedy_client(port, requests):
    """A client that asks and never reads: its connection, after as many requests as the server would take."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(0.5)
    connection.connect(("127.0.0.1", port))
    with contextlib.suppress(TimeoutError):
        connection.sendall(requests)
    return connection


class Server:
    """The server on a port of its own, after the code `changes`; its output is in the file `log`.

    `starts` counts its processes, `up` is whether one is to answer, `killed` whether the last one was ended by SIGKILL,
    `samples` are (seconds since its start, MB, files, threads).
    """

    def __init__(self, log, changes=""):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program = f"from embedding_finetune.serving import registry, server\n{changes}\nserver.main()"
        self.command = [sys.executable, "-c", program, "--port", str(self.port), "--system", "reference"]
        self.log, self.starts, self.up, self.killed, self.samples = Path(log), 0, False, False, []

    def start(self):
        """Start it, again and again while there is nothing to answer with; returns when it answers."""
        deadline = time.monotonic() + STARTS
        while not self.up:
            with open(self.log, "a") as log:
                self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log)
            self.starts += 1
            while self.process.poll() is None and not self.up:
                assert time.monotonic() < deadline, self.log.read_text()[-2000:]
                time.sleep(0.1)
                self.up = self._answers()
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
        self.samples, self.since = [], time.monotonic()
        self.sample()

    def end(self, how, patience=STARTS):
        """End it with a signal; returns whether it ended in time, by that signal."""
        self.up, self.killed = False, how == signal.SIGKILL
        self.process.send_signal(how)
        try:
            return self.process.wait(patience) in (-how, 0)
        except subprocess.TimeoutExpired:
            self.killed = True
            self.process.kill()
            self.process.wait()
            return False

    def sample(self, every=0):
        """Look at the process, unless that was done within so many seconds: a row for `samples`."""
        at = time.monotonic() - self.since
        with contextlib.suppress(OSError, KeyError):  # it is being killed
            if not self.samples or at >= self.samples[-1][0] + every:
                lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
                about = dict(line.split(":", 1) for line in lines)
                self.samples.append((at, int(about["VmRSS"].split()[0]) / 1024,
                                     len(os.listdir(f"/proc/{self.process.pid}/fd")), int(about["Threads"])))

    def said(self, *words):
        """The lines of its log that have one of these words."""
        return [line for line in self.log.read_text().splitlines() if any(word in line for word in words)]

    def failures(self):
        """The lines of its log that report a bug; requests of hanging clients may be cancelled when it is ended."""
        bugs = self.said("Traceback", " failed: ", "never retrieved")
        return bugs[len(self.said("CancelledError: Task cancelled, timeout graceful shutdown")):]

    def _answers(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
