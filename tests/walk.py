"""Walk through the README (`make walk`): run each command of its code blocks, in order, in a fresh clone.

    python tests/walk.py [--clone FOLDER] [--without "make test"]

Each command must end with status 0 and print what the README promises (EXPECTED). Afterwards the question of the README
must be answered, and the number of answered questions must be the one it gives. Some things stand in for others:

- the Hugging Face Hub: a server on this machine with a few MS MARCO pairs and tiny random models, see hub.py
- a person in Jupyter: the server must answer, then the notebooks that the comment names are executed
- `faq.csv`: 60 small questions and answers

`nohup .. &` is waited for, `tail -f` ends with it, and a server is ended once it has answered. Packages are installed
from the caches of uv and pip where they have them.
"""

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MODELS = "bert-base-uncased", "BAAI/bge-m3"
DATASETS = "namespace-Pt/msmarco", "namespace-Pt/msmarco-corpus"
PATIENCE = 300  # seconds until a server answers
ADDRESS = re.compile(r"(?P<root>https?://(?:127\.0\.0\.1|localhost):\d+)[^\s?]*(?P<token>\?token=\w+)?")
ENDS_WITH = r"Use .+recall@1 .+report +{}/report\.html.+search +.*python -m embedding_finetune search"
EXPECTED = {  # beginning of a command -> what its output has, a regular expression
    "make demo": ENDS_WITH.format("output/demo"),
    "make test": r"\d+ passed",
    "make install": "",
    "jupyter lab": "",
    "nohup": "",
    "tail": r"finished: .*output/\w+",
    "python -m embedding_finetune init": r"written to \.env.+DATASET=faq\.csv.+report +output/faq/report\.html",
    "export": "",
    "python -m embedding_finetune search": r"\n +[123]  \S+  \S+  sympy\.crypto\.crypto\.encipher_railfence",
    "python -m embedding_finetune serve": "",
    "python -m embedding_finetune export": r"onnx",
    "python -m embedding_finetune publish": r"neg10",
}


def code_blocks(page: Path) -> list[list[tuple[str, str]]]:
    """The (command, comment) of each line of each code block; lines with a comment alone are left out."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [[re.split(r"(?:^|\s+)#\s+", line.strip(), maxsplit=1) for line in block.splitlines()] for block in blocks]
    return [[(command, "".join(comment)) for command, *comment in block if command] for block in lines]


def expected(command: str) -> str:
    """What the output of a command has: a regular expression. Raises LookupError for a command that is not known."""
    for beginning, pattern in EXPECTED.items():
        if command.startswith(beginning):
            return pattern
    raise LookupError(f"tests/walk.py does not know what `{command}` is to print: add it to EXPECTED")


def foreground(command: str) -> str:
    """The command without anything that goes on after it: `nohup .. &` is waited for, `tail -f` only shows the end."""
    return f"{command} wait $!" if command.endswith("&") else command.replace("tail -f", "tail")


def fetched(url: str) -> str:
    """What a server answers at this address; it may need a moment after it has given it."""
    for _ in range(PATIENCE):
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return f"{url}: {answer.status} {answer.read(200).decode()}"
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError):
                raise
            time.sleep(1)
    sys.exit(f"error: nothing answers at {url}")


class Walk:
    """A clone and the environment of its commands; `exports` are the commands so far that have changed it."""

    def __init__(self, clone: Path, environment: dict[str, str]):
        self.clone, self.environment, self.exports = clone, environment, []

    def take(self, command: str, comment: str) -> None:
        """Run one line of the README as a person would, and check what it prints."""
        print(f"\n$ {command}", flush=True)
        began, pattern = time.monotonic(), expected(command)
        if command == "jupyter lab":
            self.visit(command, "/api/status")
            for name in re.findall(r"\w[\w*]+", comment):
                for notebook in sorted(self.clone.glob(f"{name}.ipynb")):
                    self.run(f"jupyter execute {notebook.name}")
        elif command.endswith("serve"):
            self.visit(command, "/healthz")
        else:
            output = self.run(foreground(command))
            if not re.search(pattern, output, flags=re.DOTALL):
                sys.exit(f"error: the output of `{command}` does not have {pattern!r}")
            for advised in re.findall(r"^search +(.+)$", output, flags=re.MULTILINE):
                self.run(advised)
        self.exports += [part for part in command.split(" && ") if part.startswith(("source ", "export "))]
        print(f"({time.monotonic() - began:.0f} s)", flush=True)

    def run(self, command: str) -> str:
        """The output of a command that must succeed, which is shown as it comes."""
        lines = []
        with self.start(command) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
        if process.returncode:
            sys.exit(f"error: `{command}` failed (exit status {process.returncode})")
        return "".join(lines)

    def visit(self, command: str, path: str) -> None:
        """Start a server, wait until it answers at `path`, and end it."""
        process = self.start(command)
        reader = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGTERM))
        reader.start()
        try:
            address = next(filter(None, map(ADDRESS.search, process.stdout or ())), None)
            if address is None:
                sys.exit(f"error: `{command}` gave no address")
            print(fetched(f"{address['root']}{path}{address['token'] or ''}"), flush=True)
        finally:
            reader.cancel()
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate()

    def start(self, command: str) -> subprocess.Popen:
        """The process of a command; the tests have a Hub of their own."""
        environment = {name: value for name, value in self.environment.items()
                       if command != "make test" or not name.startswith("HF_")}
        return subprocess.Popen(["bash", "-c", "\n".join([*self.exports, command])], cwd=self.clone, text=True,
                                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                start_new_session=True)


def prepare(clone: Path, folder: Path) -> dict:
    """Clone the repository, write faq.csv into the clone and stand-ins for the Hub into `folder`; returns these."""
    from tiny import tiny_bert, tiny_msmarco, tiny_msmarco_corpus, tiny_pairs, tiny_texts, tiny_xlmr

    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    pairs = tiny_pairs(150)
    with open(clone / "faq.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerows([("question", "answer"), *((row["query"], row["pos"][0]) for row in pairs[:60])])
    models = dict(zip(MODELS, (tiny_bert(folder / "base", tiny_texts(pairs)),
                               tiny_xlmr(folder / "reference", tiny_texts(pairs)))))
    datasets = dict(zip(DATASETS, (tiny_msmarco(folder / "pairs", pairs),
                                   tiny_msmarco_corpus(folder / "corpus", pairs))))
    jupyter = {"ServerApp": {"open_browser": False, "allow_root": True}}
    (folder / "jupyter").mkdir()
    (folder / "jupyter" / "jupyter_server_config.json").write_text(json.dumps(jupyter))
    return {"models": models, "datasets": datasets}


def check_figures(walk: Walk) -> None:
    """The committed figures of the questions must be those of this demo."""
    found = json.loads(walk.run("PYTHONPATH=. python benchmarks/bench_questions.py").splitlines()[-1])
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    if found != (committed := results.get("questions")):
        sys.exit(f"error: the questions give {found}, but benchmarks/results.json has {committed}")


def main() -> None:
    """Walk. A failure is one line on standard error and exit status 1."""
    parser = argparse.ArgumentParser(description="Run each command of the README in a fresh clone.")
    parser.add_argument("--clone", type=Path, help="where to clone to; default: a temporary folder, which is removed")
    parser.add_argument("--without", action="append", default=[], metavar="COMMAND", help="a command to leave out")
    options = parser.parse_args()
    from hub import hub, hub_environment

    with tempfile.TemporaryDirectory() as temporary:
        folder, clone = Path(temporary), options.clone or Path(temporary, "clone")
        with hub(prepare(clone, folder)) as endpoint:
            inherited = {name for name in os.environ if name in ("PROFILE", "ENV_FILE", "PYTHONPATH", "VIRTUAL_ENV")}
            environment = hub_environment(endpoint, folder / "hf", JUPYTER_CONFIG_DIR=str(folder / "jupyter"))
            walk = Walk(clone, {name: value for name, value in environment.items() if name not in inherited})
            for command, comment in chain.from_iterable(code_blocks(README)):
                if command not in options.without:
                    walk.take(command, comment)
            check_figures(walk)
        shutil.rmtree(folder / "hf", ignore_errors=True)
    print("\nevery command of the README works")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    main()
