"""The pictures in docs/images, out of the notebooks: each cell tagged `image:NAME` gives docs/images/NAME.png.

python docs/make_images.py    (some minutes: all notebooks of docs/ are executed)
"""

import base64
import sys
import tempfile
from pathlib import Path

import nbformat

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from embedding_finetune.files import atomic_write, run_command_line
from embedding_finetune.pipeline import run_notebook


def main():
    for path in sorted(DOCS.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            run_notebook(path, Path(folder))
            executed = nbformat.read(Path(folder) / path.name, as_version=4)
        for name, png in images(executed).items():
            with atomic_write(DOCS / "images" / f"{name}.png", "wb") as file:
                file.write(png)
            print(f"docs/images/{name}.png: {len(png) // 1000} kB")


def images(notebook):
    """The PNG of each cell tagged `image:NAME` of an executed notebook, by name."""
    found = {}
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            if tag.startswith("image:"):
                data = next(output.data for output in cell.outputs if "image/png" in output.get("data", {}))
                found[tag.removeprefix("image:")] = base64.b64decode(data["image/png"])
    return found


if __name__ == "__main__":
    run_command_line(main)
