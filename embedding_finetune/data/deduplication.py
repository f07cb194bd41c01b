"""Rows of any reader to queries, passages and judgments without duplicates."""

from collections import Counter
from collections.abc import Iterable

from embedding_finetune.data.collection import SHARED, SPLITS, Collection
from embedding_finetune.data.normalize import clean_text, normalize, passage_id, query_id
from embedding_finetune.data.readers import Row
from embedding_finetune.files import UserError


def clean(rows: Iterable[Row], more: Collection | None = None) -> tuple[Collection, Counter]:
    """Deduplicate rows into a Collection; also returns a Counter of the cleaning steps.

    Empty texts, and passages equal to their query, are dropped. Rows with the same query are merged and keep all their
    positives, with the highest of several grades. Of equal passages the first spelling and the first id are kept.
    Negatives get grade 0 unless they are also positives of the query. Queries without a positive are dropped; their
    passages stay. The passages of the Collection `more` come first. Raises UserError when an id names two texts, or
    when a query is in two splits.
    """
    cleaning = _Cleaning(more or Collection({}, {}, {}))
    for row in rows:
        cleaning.counts["rows read"] += 1
        if row.query is None:
            cleaning.counts["rows of passages alone"] += 1
            for text in filter(None, map(clean_text, row.positives)):
                cleaning.add_passage(passage_id(text), text, row, row.source)
        else:
            cleaning.add_judgments(row)
    return cleaning.collection()


class _Cleaning:
    """Cleaned queries, passages and judgments; rows are added one by one, see `clean`."""

    def __init__(self, more):
        self.queries, self.qrels, self.corpus, self.source = {}, {}, dict(more.corpus), dict(more.source)
        self.counts = Counter()
        # Ids that are not the hash of the text: hash -> id.
        ids = {passage_id(text): identity for identity, text in more.corpus.items()}
        self.passage_ids = {key: identity for key, identity in ids.items() if key != identity}
        self.query_ids, self.splits = {}, {}
        self.rows = {}  # query id -> number of rows, of queries that began without a positive

    def add_passage(self, key, text, row, source):
        """Add a cleaned text of a row, unless an equal one is there; returns its id. Raises UserError for a used id.

        `key` is the hash of the text, its passage_id.
        """
        identity = self.passage_ids.get(key, key)
        if row.query is None and row.id is not None and identity not in self.corpus:
            identity = self.passage_ids[key] = _one_word(row, self.counts)
            if identity in self.corpus:
                raise UserError(f"the id {identity!r} names two passages: {self.corpus[identity][:80]!r} and "
                                f"{text[:80]!r}; make the ids distinct or leave them out (CORPUS_ID_COLUMN=none)")
        self.corpus.setdefault(identity, text)
        if source:
            self.source.setdefault(identity, clean_text(source))
        return identity

    def add_judgments(self, row):
        """Add the query of a row and its passages, unless the query or all its positives are dropped."""
        query = clean_text(row.query)
        positives, negatives = self._passages(row, query)
        if not query or not positives and not negatives:
            self.counts["rows without query or passage dropped"] += 1
            return
        identity = self._add_query(query, row)
        if row.split != self.splits.get(identity, ""):
            self.counts[SHARED] += 1
            return
        judged = self.qrels[identity]
        if identity in self.rows or not positives and not judged:
            self.rows[identity] = self.rows.get(identity, 0) + 1
        for key, text in positives.items():
            self._judge(judged, self.add_passage(key, text, row, row.source), row.grade)
        for key, text in negatives.items():
            self._judge(judged, self.add_passage(key, text, row, None), 0)  # a row's source is that of its positives

    def _judge(self, judged, passage, grade):
        """Set the grade of a passage; of several the highest is kept."""
        if judged.setdefault(passage, grade) != grade:
            judged[passage] = max(grade, judged[passage])
            self.counts["pairs judged again with another grade: the higher one is kept"] += 1

    def _passages(self, row, query):
        """The positives and negatives of a row by hash, without empty texts and texts equal to the query."""
        cleaned = [list(map(clean_text, texts)) for texts in (row.positives, row.negatives)]
        self.counts["empty passages dropped"] += sum(texts.count("") for texts in cleaned)
        positives, negatives = ({passage_id(text): text for text in texts if text} for texts in cleaned)
        same = passage_id(query)
        if positives.pop(same, None) or negatives.pop(same, None):
            self.counts["passages equal to their query dropped"] += 1
        return positives, negatives

    def _add_query(self, query, row):
        """Add a query, unless an equal one is there; returns its id. Raises UserError for a used id."""
        key = query_id(query)
        identity = self.query_ids.get(key, key)
        if identity in self.queries:
            self.counts["rows merged with an earlier row of the same query"] += 1
            if row.split and SPLITS.index(row.split) > SPLITS.index(self.splits[identity]):
                self.counts[SHARED] += len(self.qrels[identity])
                self.qrels[identity], self.splits[identity] = {}, row.split
            return identity
        if row.id is not None:
            identity = self.query_ids[key] = _one_word(row, self.counts)
        if identity in self.queries:
            raise UserError(f"the id {identity!r} names two queries: {normalize(self.queries[identity])[:80]!r} and "
                            f"{normalize(query)[:80]!r}; make the ids distinct or leave them out (ID_COLUMN=none)")
        self.queries[identity], self.qrels[identity] = query, {}
        if row.split:
            self.splits[identity] = row.split
        return identity

    def _drop_unanswered(self):
        """Drop the queries without a positive."""
        for query in [query for query in self.rows if not any(self.qrels[query].values())]:
            self.counts["rows of queries without a positive dropped"] += self.rows[query]
            self.counts["rows merged with an earlier row of the same query"] -= self.rows[query] - 1
            del self.queries[query], self.qrels[query]
            self.splits.pop(query, None)

    def _copies(self):
        """Query id -> ids of passages with its text. Equal texts have ids that differ in the first letter only."""
        keys, copies = {identity: key for key, identity in self.query_ids.items()}, {}
        for query in self.queries:
            key = f"p{keys.get(query, query)[1:]}"
            passage = self.passage_ids.get(key, key)
            copies |= {query: [passage]} if passage in self.corpus else {}
        return copies

    def collection(self):
        """The Collection, and a Counter of the cleaning steps."""
        self._drop_unanswered()
        self.counts["queries read"] = len(self.queries)
        several, negatives = "queries with several positives", "queries with negatives of their own"
        self.counts[several] = sum(sum(judged.values()) > 1 for judged in self.qrels.values())
        self.counts[negatives] = sum(0 in judged.values() for judged in self.qrels.values())
        return Collection(self.queries, self.corpus, self.qrels, self.splits, self.source, self._copies(),
                          predefined=tuple(sorted(set(self.splits.values())))), +self.counts


def _one_word(row, counts):
    identity = clean_text(row.id if isinstance(row.id, str) else str(row.id))
    if len(identity.split()) != 1:
        raise UserError(f"{row.where or 'row {}'.format(counts['rows read'])}: the id {identity!r} must be one word, "
                        "as TREC files require: replace the blanks, or set "
                        f"{'CORPUS_ID_COLUMN' if row.query is None else 'ID_COLUMN'}=none to leave the ids out")
    return identity
