"""Indexes that stay open and follow their files, and a thread that answers together what waits together."""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from embedding_finetune.artifacts.manifest import file_stamps
from embedding_finetune.files import UserError, one_line
from embedding_finetune.serving.available import check_label, labels
from embedding_finetune.serving.index import is_current, open_index

WAITING = 256  # queries that may wait; more are sent away
MAX_BATCH = 32  # queries that are answered together
RECHECK_SECONDS = 60.0  # seconds after which what could not be opened is tried again, though its files have not changed

log = logging.getLogger(__name__)


class Overloaded(Exception):
    """Not now: `args[0]` says why; the client may come again."""


class IndexRegistry:
    """The indexes that are open, and the thread that opens them."""

    def __init__(self, settings, default):
        """`default` is the label of who names none. Raises UserError when it cannot be opened."""
        self.settings, self.default, self.labels = settings, default, labels(settings)
        self.open = {default: open_index(settings, default)}
        self.opening, self.failed, self.tried, self.complaint = set(), {}, {}, ""
        self.librarian = ThreadPoolExecutor(1)

    def get(self, label):
        """The Index of a label. Raises Busy while it is being opened, UserError when it cannot be."""
        label = label or self.default
        if label in self.open:
            return self.open[label]
        check_label(self.settings, label)
        if label in self.failed:
            raise UserError(self.failed.pop(label))  # the next one who asks tries again
        self._fetch(label)
        raise Overloaded(f"the index of {label} is being opened")

    def refresh(self):
        """Open anew what has changed; what cannot be opened stays as it is, until its files change again or AGAIN has
        passed. Where the files cannot be looked at, the log says so, and the next look may see more."""
        complaint = ""
        try:
            self._look()
        except Exception as error:  # recipes that are half written, a folder that is moved
            complaint = one_line(error)
        if complaint not in ("", self.complaint):
            log.warning("whether files have changed cannot be seen: %s", complaint)
        self.complaint = complaint

    def _look(self):
        self.labels = labels(self.settings)
        for label, index in list(self.open.items()):
            if not is_current(self.settings, index.manifest):
                files, (failed, when) = file_stamps(index.manifest["files"]), self.tried.get(label, (None, 0))
                if files != failed or time.monotonic() > when + RECHECK_SECONDS:
                    self._fetch(label, files)

    def _fetch(self, label, files=None):
        """Let it be opened, unless that is being done; `files` are the stamps that it is to be opened with."""
        if label not in self.opening:
            self.opening.add(label)
            self.librarian.submit(self._bring, label, files)

    def _bring(self, label, files):
        try:
            self.open[label] = open_index(self.settings, label)
            self.tried.pop(label, None)
            log.info("%s is open", label)
        except Exception as error:
            self.tried[label] = files, time.monotonic()  # not before: they may have changed again in the meantime
            if label not in self.open:
                self.failed[label] = one_line(error)
            log.warning("%s cannot be opened: %s", label, one_line(error))
        finally:
            self.opening.discard(label)


class QueryBatcher:
    """One thread that answers the queries that wait, together those for the same index and the same number of hits."""

    def __init__(self):
        self.waiting = queue.Queue(WAITING)
        threading.Thread(target=self._work, daemon=True).start()

    async def ask(self, index, query, k):
        """The hits of a query (see index.Index.answer). Raises Busy when too many wait."""
        future = asyncio.get_running_loop().create_future()
        try:
            self.waiting.put_nowait((future, index, query, k))
        except queue.Full:
            raise Overloaded(f"{WAITING} queries are waiting already") from None
        return await future

    def _work(self):
        while True:
            taken = [self.waiting.get()]
            while len(taken) < MAX_BATCH and not self.waiting.empty():
                taken.append(self.waiting.get())
            taken = [one for one in taken if not one[0].done()]  # some have gone away
            for index, k in dict.fromkeys((index, k) for _, index, _, k in taken):
                self._answer(index, k, [one for one in taken if one[1] is index and one[3] == k])

    def _answer(self, index, k, taken):
        try:  # with the same k alone: an approximate index finds other passages for a larger one
            found = index.answer([query for _, _, query, _ in taken], k)
            hits = [(future, future.set_result, hits) for (future, *_), hits in zip(taken, found, strict=True)]
        except Exception as error:
            if len(taken) > 1:  # one query may be the cause: the others get their answers
                for one in taken:
                    self._answer(index, k, [one])
                return
            hits = [(future, future.set_exception, RuntimeError(one_line(error))) for future, *_ in taken]

        def deliver():
            for future, settle, value in hits:
                if not future.done():
                    settle(value)

        with contextlib.suppress(RuntimeError):  # the server has shut down
            taken[0][0].get_loop().call_soon_threadsafe(deliver)  # once: waking the loop is not for nothing
