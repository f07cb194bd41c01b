"""Files of tables: which files a name stands for, and their content, unpacked and decoded."""

import codecs
import contextlib
import csv
import glob
import gzip
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow

from embedding_finetune.extras import require
from embedding_finetune.files import UserError, one_line
from embedding_finetune.settings import path_of

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx")
PACKED = (".gz", ".zst", ".zip")
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"(\xb5/\xfd": "zstd", b"PK\3\4": "zip"}
LONGEST = 2**26  # maximum characters of a CSV field; longer ones result from a missing quote
MOST_UNPACKED = 2**28, 100  # bytes, or times the size of the packed file, whichever is more
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
NOT_DATA = re.compile(r"(readme|license|licence|citation|changelog|contributing)\b.*", re.IGNORECASE)
DOCUMENTS = (".txt", ".text", ".rst", ".md", ".markdown", ".html", ".htm", ".xhtml", ".pdf")
SPLIT_NAMES = {"train": "train", "training": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev",
               "test": "test"}
SPLIT_IN_NAME = re.compile(rf"(?:^|[-_./])({'|'.join(SPLIT_NAMES)})(?=[-_./])", re.IGNORECASE)
CONFIG = re.compile(r"^\s*-\s*config_name:\s*(\S+)", re.MULTILINE)  # in a dataset card
SHARD = re.compile(r"-(\d{5})(-of-)(\d{5})\b")


def table_files(name: str) -> list[Path]:
    """The tables that DATASET or CORPUS names: a file, a glob, several joined by `:`, or those of a cloned dataset.

    Empty for anything else. A folder is a cloned dataset if it has tables, and no documents but those about it.
    """
    path = path_of(name)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return [path] if _ending(path) in (*TABLES, *PACKED) else []
    if glob.has_magic(name):
        return sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file())
    parts = [path_of(part) for part in name.split(os.pathsep)]
    return parts if len(parts) > 1 and all(part.is_file() for part in parts) else []


def _of_folder(folder):
    files = sorted(Path(root) / file for root, folders, names in os.walk(folder)
                   if not any(part.startswith(".") for part in Path(root).relative_to(folder).parts)
                   for file in names if not file.startswith(".") and not NOT_DATA.fullmatch(file))
    tables = [path for path in files if _ending(path) in TABLES or _ending(path) in PACKED and table_ending(path)]
    scripts = [path for path in files if path.suffix == ".py" and path.stat().st_size < 2**20
               and b"GeneratorBasedBuilder" in path.read_bytes()]
    if scripts and not tables:
        raise UserError(f"{scripts[0]} is a dataset script, which is never run: give the tables that it makes")
    return [] if any(path.suffix.lower() in DOCUMENTS for path in files) else tables


def choose_split(files: list[Path], folder: Path, split: str, setting: str) -> list[Path]:
    """The files of one split of a cloned dataset, by the names of the files; `setting` is the one that selects it.

    Raises UserError when there are several splits or configurations to choose from, or when a shard is missing.
    """
    named = {path: str(path.relative_to(folder)) for path in files}
    card = folder / "README.md"
    configs = CONFIG.findall(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else []
    if len(configs) > 1:
        raise UserError(f"{folder} has the configurations {', '.join(configs)} in {', '.join(named.values())}: "
                        f"name the files of one, such as {files[0]}")
    for name in named.values():
        before, _, of, number, after = (SHARD.split(name) + [""] * 4)[:5]
        for other in (f"{before}-{shard:05}{of}{number}{after}" for shard in range(int(number or 0))):
            if other not in named.values():
                raise UserError(f"{folder} has {name}, but {other} is missing: download it (git lfs pull), or name the "
                                "files to read, such as data/*.parquet")
    found = {path: match[1].lower() for path, name in named.items() if (match := SPLIT_IN_NAME.search(name))}
    splits = sorted(set(found.values()))
    if split and split not in splits or not split and (len(splits) > 1 or found and len(found) < len(files)):
        raise UserError(f"{folder} has the splits {', '.join(splits)} in {', '.join(named.values())}: set {setting} to "
                        "one of them, or name the files to read")
    return [path for path in files if not split or found.get(path) == split]


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what libraries raise about a file into a one-line UserError that names it."""
    try:
        yield
    except (OSError, ValueError, RecursionError, EOFError, csv.Error, pyarrow.ArrowException, zlib.error,
            zipfile.BadZipFile, NotImplementedError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise UserError(f"cannot read {path}: {reason}") from None


def _ending(path):
    return path.suffix.lower()


def table_ending(path: Path) -> str:
    """The extension of a table without that of its compression, "" if it is not a table; raises as `_member`."""
    if _ending(path) == ".zip":
        with readable(path), zipfile.ZipFile(path) as archive:
            path = Path(_member(archive, path).filename)
    elif _ending(path) in PACKED:
        path = Path(path.stem)
    return _ending(path) if _ending(path) in TABLES else ""


def compression_of(path: Path) -> str:
    """The compression of a file by its first bytes, "" if there is none. Raises UserError for a pointer of Git LFS."""
    with open(path, "rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise UserError(f"{path} is a pointer of Git LFS, not the data: `git lfs pull` downloads them")
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), "")


def _member(archive, path):
    """The one file in a ZIP archive; it is never unpacked to disk."""
    files = [info for info in archive.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
    if len(files) != 1:
        raise UserError(f"{path} holds {len(files)} files, and only archives of one table are read: unpack it")
    if files[0].flag_bits & 1:
        raise UserError(f"{path} is encrypted: unpack it")
    return files[0]


class _Bounded(io.RawIOBase):
    """A stream of unpacked bytes that ends with a UserError beyond `most` of them."""

    def __init__(self, stream, path):
        size, factor = MOST_UNPACKED
        self.stream, self.path, self.left = stream, path, max(size, factor * path.stat().st_size)

    def readable(self):
        return True

    def readinto(self, buffer):
        content = self.stream.read(len(buffer))
        self.left -= len(content)
        if self.left < 0:
            raise UserError(f"{self.path} unpacks to more than {MOST_UNPACKED[1]} times its size: if that is right, "
                            "unpack it yourself")
        buffer[:len(content)] = content
        return len(content)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, unpacked if it is compressed, as a binary stream."""
    compression = compression_of(path)
    with contextlib.ExitStack() as stack:
        if not compression:
            yield stack.enter_context(open(path, "rb"))
            return
        if compression == "zip":
            archive = stack.enter_context(zipfile.ZipFile(path))
            stream = archive.open(_member(archive, path))
        else:
            zstd = compression == "zstd"
            stream = pyarrow.input_stream(str(path), compression="zstd") if zstd else gzip.GzipFile(path)
        yield io.BufferedReader(_Bounded(stack.enter_context(stream), path), 2**18)


@contextlib.contextmanager
def open_text(path: Path, newline: str = "") -> Iterator[io.TextIOWrapper]:
    """The content as text: UTF-8, or what a byte order mark says.

    Invalid UTF-8 is kept as surrogates, to be reported by row (see is_text). Line ends are kept; `newline` is that of
    `open`.
    """
    with open_bytes(path) as file:
        yield io.TextIOWrapper(file, encoding=encoding_of(path), errors="surrogateescape", newline=newline)


def encoding_of(path: Path) -> str:
    """The encoding of a text file by its byte order mark; UTF-8 if it has none."""
    with open_bytes(path) as file:
        start = file.read(4)
    return ("utf-32" if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) else
            "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")


def is_text(text: str) -> bool:
    """Whether a text from `open_text` was valid UTF-8."""
    return text.isascii() or not re.search("[\udc80-\udcff]", text)


def not_utf8(path: Path) -> str:
    """What is wrong with a file that is not UTF-8, and in which encoding it probably is."""
    with open_bytes(path) as file:
        best = require("charset_normalizer").from_bytes(file.read(2**16)).best()
    return f"not UTF-8{f' but probably {best.encoding}' if best else ''}: save the file as UTF-8"


def first_line(file: IO[str]) -> tuple[int, str]:
    """(number of blank lines above, the first line that is not blank); of at most LONGEST characters."""
    above = 0
    for line in iter(lambda: file.readline(LONGEST), ""):
        if line.strip():
            return above, line
        above += 1
    return above, ""
