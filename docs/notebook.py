"""Writes examples/textbook.ipynb from docs/textbook.md: `make pictures`."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "textbook.md"
NOTEBOOK = ROOT / "examples" / "textbook.ipynb"
_BLOCK = re.compile(r"^```python\n(.*?)^```\n?", re.DOTALL | re.MULTILINE)


def notebook() -> str:
    """The notebook as JSON: the page's text in Markdown cells, its examples in code cells."""
    text = re.sub(r"\]\((?!\w+://)", "](../docs/", PAGE.read_text(encoding="utf-8"))
    cells: list[dict[str, Any]] = []
    for place, part in enumerate(_BLOCK.split(text)):
        cells += _code(part) if place % 2 else _markdown(part.strip())
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    found = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(found, indent=1) + "\n"


def _markdown(text: str) -> list[dict[str, Any]]:
    source = text.splitlines(keepends=True)
    return [{"cell_type": "markdown", "metadata": {}, "source": source}] if source else []


def _code(examples: str) -> list[dict[str, Any]]:
    """One cell for each output shown on the page. Where it is an error, the run goes on."""
    cells, waiting = [], ""
    found = doctest.DocTestParser().get_examples(examples)
    for example in found:
        waiting += example.source
        if example.want or example is found[-1]:
            tags = ["raises-exception"] if example.exc_msg else []
            cells.append(
                {
                    "cell_type": "code",
                    "execution_count": None,
                    "metadata": {"tags": tags} if tags else {},
                    "outputs": [],
                    "source": waiting.rstrip().splitlines(keepends=True),
                }
            )
            waiting = ""
    return cells


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
