"""Where each file of an experiment is: the folders and file names inside DATA_DIR and OUTPUT_DIR."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The files of an experiment; `data` is DATA_DIR, `output` is OUTPUT_DIR."""

    data: Path
    output: Path

    @property
    def dataset_record(self) -> Path:
        """What the collection was made from."""
        return self.data / "dataset.json"

    @property
    def dataset_report(self) -> Path:
        return self.data / "dataset_report.json"

    @property
    def feedback(self) -> Path:
        """Relevance feedback from the search page, in a format that DATASET reads."""
        return self.data / "marks.jsonl"

    def model(self, label: str) -> Path:
        """Folder of a finished model."""
        return self.output / label

    def unfinished(self, label: str, trainer: str = "embedding_finetune") -> Path:
        """Folder of a model that is being trained."""
        return self.output / f"{label}{'.flagembedding' if trainer == 'flagembedding' else ''}.partial"

    def run(self, label: str, part: str = "test") -> Path:
        """Rankings of a system in TREC format, of the test or the dev queries."""
        return self.output / "runs" / ("dev" if part == "dev" else "") / f"{label}.trec"

    def preflight(self, label: str) -> Path:
        """Folder of the untrained model that is exported before a training."""
        return self.output / f".preflight-{label}"

    @property
    def results(self) -> Path:
        """Folder of the results and of the comparison."""
        return self.output / "results"

    def result(self, label: str) -> Path:
        """Metrics of a system."""
        return self.results / f"{label}.json"

    def index(self, label: str) -> Path:
        """Folder of the saved indexes of a system."""
        return self.output / "index" / label

    @property
    def cache(self) -> Path:
        """Folder of the stored embeddings."""
        return self.output / "cache"

    @property
    def searches(self) -> Path:
        """Folder of the stored searches of the mining."""
        return self.cache / "hits"

    @property
    def notebooks(self) -> Path:
        """Folder of the executed copies of the notebooks."""
        return self.output / "notebooks"

    @property
    def report(self) -> Path:
        return self.output / "report.html"

    def published(self, label: str) -> Path:
        """Folder of a model that is prepared for the Hugging Face Hub."""
        return self.output / "publish" / label
