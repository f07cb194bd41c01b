"""Open indexes that are reloaded when their files change, and a thread that answers waiting queries in batches."""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from embedding_finetune.artifacts.manifest import file_stamps
from embedding_finetune.files import UserError, one_line
from embedding_finetune.serving.available import labels
from embedding_finetune.serving.index import is_current, open_index

WAITING = 256  # length of the queue; further queries are refused
MAX_BATCH = 32  # queries per batch
RECHECK_SECONDS = 60.0  # an index that failed to open is tried again after this time, even if its files are unchanged

log = logging.getLogger(__name__)


class Overloaded(Exception):
    """The server cannot answer now: `args[0]` says why, and the client may retry."""


class IndexRegistry:
    """The open indexes, and the loader thread that opens them."""

    def __init__(self, settings, default):
        """Open the index of `default`, the label used when a request names none. Raises UserError when that fails."""
        self.settings, self.default, self.labels = settings, default, labels(settings)
        self.open = {default: open_index(settings, default)}
        self.opening, self.failed, self.tried, self.complaint = set(), {}, {}, ""
        self.loader = ThreadPoolExecutor(1)

    def get(self, label):
        """The Index of a label. Raises Overloaded while it is being opened, UserError when it cannot be opened."""
        label = label or self.default
        if label in self.open:
            return self.open[label]
        if label not in self.labels:
            raise UserError(f"there is no system {label[:100]!r} to search with: choose one of "
                            f"{', '.join(self.labels)}")
        if label in self.failed:
            raise UserError(self.failed.pop(label))  # the next request tries again
        self._load_later(label)
        raise Overloaded(f"the index of {label} is being opened")

    def refresh(self):
        """Reload the indexes whose files have changed.

        If reloading fails, the old index stays open, and loading is tried again when the files change or after
        RECHECK_SECONDS. Errors while checking the files are logged.
        """
        complaint = ""
        try:
            self._reload_changed()
        except Exception as error:  # such as half-written recipes or a moved folder
            complaint = one_line(error)
        if complaint not in ("", self.complaint):
            log.warning("cannot check whether files have changed: %s", complaint)
        self.complaint = complaint

    def _reload_changed(self):
        self.labels = labels(self.settings)
        for label, index in list(self.open.items()):
            if not is_current(self.settings, index.manifest):
                files, (failed, when) = file_stamps(index.manifest["sources"]), self.tried.get(label, (None, 0))
                if files != failed or time.monotonic() > when + RECHECK_SECONDS:
                    self._load_later(label, files)

    def _load_later(self, label, files=None):
        """Queue a label for loading, unless it is being loaded; `files` are the stamps of its files at this time."""
        if label not in self.opening:
            self.opening.add(label)
            self.loader.submit(self._load, label, files)

    def _load(self, label, files):
        try:
            self.open[label] = open_index(self.settings, label)
            self.tried.pop(label, None)
            log.info("%s is open", label)
        except Exception as error:
            self.tried[label] = files, time.monotonic()  # set after loading: the files may have changed meanwhile
            if label not in self.open:
                self.failed[label] = one_line(error)
            log.warning("%s cannot be opened: %s", label, one_line(error))
        finally:
            self.opening.discard(label)


class QueryBatcher:
    """A thread that answers waiting queries, batched by index and number of hits."""

    def __init__(self):
        self.waiting = queue.Queue(WAITING)
        threading.Thread(target=self._work, daemon=True).start()

    async def ask(self, index, query, k):
        """The hits of a query (see index.Index.answer). Raises Overloaded when the queue is full."""
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
            taken = [one for one in taken if not one[0].done()]  # drops queries of clients that have disconnected
            for index, k in dict.fromkeys((index, k) for _, index, _, k in taken):
                self._answer(index, k, [one for one in taken if one[1] is index and one[3] == k])

    def _answer(self, index, k, taken):
        try:  # all with the same k, since an approximate index finds different passages for a larger one
            found = index.answer([query for _, _, query, _ in taken], k)
            hits = [(future, future.set_result, hits) for (future, *_), hits in zip(taken, found, strict=True)]
        except Exception as error:
            if len(taken) > 1:  # if one query is the cause, the others still get answers
                for one in taken:
                    self._answer(index, k, [one])
                return
            hits = [(future, future.set_exception, RuntimeError(one_line(error))) for future, *_ in taken]

        def deliver():
            for future, settle, value in hits:
                if not future.done():
                    settle(value)

        with contextlib.suppress(RuntimeError):  # the server has shut down
            taken[0][0].get_loop().call_soon_threadsafe(deliver)  # one call per batch, since waking the loop is slow
