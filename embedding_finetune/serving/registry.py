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
from embedding_finetune.serving.index import Index, is_current, open_index
from embedding_finetune.settings import Settings

WAITING = 256  # length of the queue; further queries are refused
MAX_BATCH = 32  # queries per batch
RECHECK_SECONDS = 60.0  # an index that failed to open is tried again after this time, even if its files are unchanged

log = logging.getLogger(__name__)


class OverloadedError(Exception):
    """The server cannot answer now: the message says why, and the client may retry."""


class AnswerError(Exception):
    """An index failed to answer a query."""


class IndexRegistry:
    """The open indexes, and the loader thread that opens them."""

    def __init__(self, settings: Settings, default: str):
        """Open the index of `default`, the label used when a request names none. Raises UserError when that fails."""
        self.settings, self.default, self.labels = settings, default, labels(settings)
        self.open = {default: open_index(settings, default)}
        self.opening, self.failed, self.complaint = set(), {}, ""  # failed: label -> (message, stamps of files, time)
        self.loader = ThreadPoolExecutor(1)

    def get(self, label: str) -> Index:
        """The Index of a label. Raises OverloadedError while it is being opened, UserError when that has failed."""
        label = label or self.default
        if label in self.open:
            return self.open[label]
        if label not in self.labels:
            raise UserError(f"there is no system {label[:100]!r} to search with: choose one of "
                            f"{', '.join(self.labels)}")
        if label in self.failed:
            raise UserError(self.failed.pop(label)[0])  # the next request tries again
        self._load_later(label)
        raise OverloadedError(f"the index of {label} is being opened")

    def refresh(self) -> None:
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
            if is_current(self.settings, index.manifest):
                continue
            files, (_, seen, when) = file_stamps(index.manifest["sources"]), self.failed.get(label, ("", None, 0))
            if files != seen or time.monotonic() > when + RECHECK_SECONDS:
                self._load_later(label, files)

    def _load_later(self, label, files=None):
        """Queue a label for loading, unless it is being loaded; `files` are the stamps of its files at this time."""
        if label not in self.opening:
            self.opening.add(label)
            self.loader.submit(self._load, label, files)

    def _load(self, label, files):
        try:
            self.open[label] = open_index(self.settings, label)
            self.failed.pop(label, None)
            log.info("%s is open", label)
        except Exception as error:
            self.failed[label] = one_line(error), files, time.monotonic()
            log.warning("%s cannot be opened: %s", label, one_line(error))
        finally:
            self.opening.discard(label)


class QueryBatcher:
    """A thread that answers waiting queries, batched by index and number of hits."""

    def __init__(self):
        self.waiting = queue.Queue(WAITING)
        threading.Thread(target=self._work, daemon=True).start()

    async def ask(self, index: Index, query: str, k: int) -> list[dict]:
        """The hits of a query (see index.Index.answer). Raises OverloadedError if the queue is full, AnswerError."""
        future = asyncio.get_running_loop().create_future()
        try:
            self.waiting.put_nowait((future, index, query, k))
        except queue.Full:
            raise OverloadedError(f"{WAITING} queries are waiting already") from None
        return await future

    def _work(self):
        while True:
            taken = [self.waiting.get()]
            while len(taken) < MAX_BATCH and not self.waiting.empty():
                taken.append(self.waiting.get())
            taken = [one for one in taken if not one[0].done()]  # drops queries of clients that have disconnected
            # All of a batch have the same k, since an approximate index finds different passages for a larger one.
            for index, k in dict.fromkeys((index, k) for _, index, _, k in taken):
                self._answer(index, k, [(one[0], one[2]) for one in taken if one[1] is index and one[3] == k])

    def _answer(self, index, k, taken):
        """Answer pairs of a future and a query. If the batch fails, each query is answered alone."""
        try:
            answers = zip(taken, index.answer([query for _, query in taken], k), strict=True)
            settled = [(future.set_result, hits) for (future, _), hits in answers]
        except Exception as error:
            if len(taken) > 1:
                for one in taken:
                    self._answer(index, k, [one])
                return
            settled = [(taken[0][0].set_exception, AnswerError(one_line(error)))]

        def deliver():
            for settle, value in settled:
                with contextlib.suppress(asyncio.InvalidStateError):  # the client has disconnected meanwhile
                    settle(value)

        with contextlib.suppress(RuntimeError):  # the server has shut down
            taken[0][0].get_loop().call_soon_threadsafe(deliver)  # one call per batch, since waking the loop is slow
