"""Clients of a server that is asked for a while, what they are answered, and the rude ones among them."""

import contextlib
import http.client
import itertools
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from urllib.parse import urlencode

from .exact import DEPTH, LABELS, same
from .served import greedy_client

HEAD = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"
SHOWN = 20  # complaints, of what may be thousands
LAST = HEAD + b"Connection: close\r\n"
MALFORMED = [  # requests, and the status that each must get
    (bytes(range(256)) * 10, 400), (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, 400),
    (b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 400),
    (b"DELETE /search HTTP/1.1\r\n" + LAST + b"\r\n", 405),
    (b"POST /marks HTTP/1.1\r\n" + LAST + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000, 413),
    (b"POST /marks HTTP/1.1\r\n" + LAST + b"Content-Length: 1\r\n\r\n{", 422),
    *((b"GET /search?" + words + b" HTTP/1.1\r\n" + LAST + b"\r\n", status) for words, status in (
        (b"", 422), (b"q=" + b"x" * 2001, 422), (b"q=x&k=0", 422), (b"q=x&k=many", 422), (b"q=x&system=nope", 404),
        (b"q=%ff%00%ed%a0%80", 200)))]
WHOLE = b"GET /search?q=otter&k=100&system=bm25 HTTP/1.1\r\n" + HEAD + b"\r\n"
HANGING = [b"", b"GET /healthz HTTP/1.1\r\nHost: 127",  # what is sent before nothing more is
           b"POST /marks HTTP/1.1\r\n" + HEAD + b"Content-Length: 50\r\n\r\n{"]


class Clients:
    """Clients in threads, each with a connection that it keeps; `counts` and `wrong` say what came of it.

    `truth` has the exact answers of each state of data and model (see exact.exact_answers), `accepted` the states that
    an answer may be of, `steady` is whether nothing is done to the server.
    """

    def __init__(self, server, truth, state, think):
        self.server, self.truth, self.accepted, self.think = server, truth, (state,), think
        self.queries = sorted(query for query in truth[state][LABELS[0]]
                              if all(truth[other][label][query] is not None for other in truth for label in LABELS))
        self.counts, self.wrong, self.seconds = Counter(), [], []
        self.steady, self.over, self.lock, self.threads = False, threading.Event(), threading.Lock(), []

    def start(self, number):
        self.threads = [threading.Thread(target=self._client, args=(seed,)) for seed in range(number)]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def count(self, what, number=1):
        with self.lock:
            self.counts[what] += number

    def complain(self, what):
        with self.lock:
            self.wrong.append(what)
            if len(self.wrong) < SHOWN:
                print("WRONG", what, flush=True)

    # -- polite ones --

    def _client(self, seed):
        rng, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        while not self.over.wait(min(rng.expovariate(1 / self.think), 1) if self.think else 0):
            label, query = rng.choice(LABELS), rng.choice(self.queries)
            accepted, before, steady = self.accepted, (self.server.starts, self.server.up), self.steady
            answer, began = None, time.perf_counter()
            try:
                connection.request("GET", "/search?" + target(query, label))
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._unanswered(error, before, cut_off=answer is not None)
                continue
            seconds = time.perf_counter() - began
            if self.judge(label, query, answer.status, body, accepted) and steady and self.steady:
                self.seconds.append(seconds)

    def _unanswered(self, error, before, cut_off):
        """There is no whole answer: is that because there was no server?"""
        self.count("requests")
        if cut_off and not self.server.killed:
            self.complain(f"an answer was cut off: {error}")
        elif before == (self.server.starts, True) and self.server.up:
            self.complain(f"no answer, though the server was up: {type(error).__name__}: {error}")
        else:
            self.count("without a server")

    def judge(self, label, query, status, body, accepted):
        """Count an answer; whether it is one, and right. `accepted`: the states when it was asked for."""
        self.count("requests")
        accepted = {*accepted, *self.accepted}
        if status == 200:
            answer = json.loads(body)
            if answer["system"] == label and any(same(answer["hits"], self.truth[state][label][query])
                                                for state in accepted):
                self.count("right")
                return True
            known = [state for state in self.truth if same(answer["hits"], self.truth[state][label][query])]
            self.complain(f"{label}: {query!r} is answered as by {known or 'no state'}, not as by {accepted}")
        elif status == 503 or status == 404 and len(accepted) > 1:  # busy; of a fusion that is not measured yet
            self.count(f"refused: {status}")
        else:
            self.complain(f"{label}: {query!r} got {status}: {body[:200]}")
        return False

    def ask(self, label, query):
        """(status, body) of one request, without a judgement; (None, ..) where there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request("GET", "/search?" + target(query, label))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            return None, repr(error)
        finally:
            connection.close()

    # -- many at once --

    def send_burst(self, number):
        """Send so many requests at once; returns what `judge_burst` reads their answers with."""
        rng, sent = random.Random(number), []
        for _ in range(number):
            label, query = rng.choice(LABELS), rng.choice(self.queries)
            sent.append((self._connected(b"GET /search?" + target(query, label).encode() + b" HTTP/1.1\r\n" + LAST
                                         + b"\r\n"), label, query))
        return self.accepted, sent

    def judge_burst(self, accepted, sent, ending=False):
        """Each must be answered whole; when the server is `ending`, whole or not at all."""
        for connection, label, query in sent:
            answer = _all_of(connection)
            head, _, body = answer.partition(b"\r\n\r\n")
            if answer and int(_header(head, b"content-length") or -1) == len(body):
                self.judge(label, query, int(head.split()[1]), body, accepted)
            elif not answer and ending:
                self.count("requests")
                self.count("without a server")
            else:
                self.complain(f"an answer in a burst was cut off: {answer[:100]}")

    # -- rude ones --

    def malformed(self):
        """Each gets its status, and the server stays."""
        for data, status in MALFORMED:
            answer = _all_of(self._connected(data))
            self.count("requests")
            if answer.startswith(b"HTTP/1.1 %d " % status):
                self.count(f"refused: {status}" if status != 200 else "right")
            else:
                self.complain(f"{data[:60]} got {answer[:60]}, not {status}")

    def vanish(self):
        """Go away in the middle of a request, or before its answer, with a reset or without."""
        for data, reset in itertools.product((WHOLE[:30], WHOLE, *HANGING), (False, True)):
            connection = self._connected(data)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            self.count("clients that went away")

    def hang(self):
        """Send a part of a request, and no more; or ask without end, and read nothing. Returns the connections."""
        return [*map(self._connected, HANGING), greedy_client(self.server.port, WHOLE * 2000)]

    def hang_for(self, seconds):
        """Hang while others are answered."""
        connections = self.hang()
        self.count("clients that hung", len(connections))
        time.sleep(seconds)
        for connection in connections:
            connection.close()

    def _connected(self, data):
        connection = socket.create_connection(("127.0.0.1", self.server.port), timeout=60)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server has seen enough of it
            connection.sendall(data)
        return connection


def target(query, label):
    return urlencode({"q": query, "k": DEPTH, "system": label})


def _all_of(connection):
    """What comes in until the other side closes, or says no more for a while."""
    parts = []
    with connection, contextlib.suppress(OSError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def _header(head, name):
    return next((value.strip() for line in head.split(b"\r\n") for key, _, value in [line.partition(b":")]
                 if key.lower() == name), None)
