"""Every Python example of README, docs/ and the public docstrings, run and compared."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from tricorr.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_EXAMPLES = [page for page in PAGES if "\n>>> " in page.read_text(encoding="utf-8")]
MODULES = [
    "autograd.functional",
    "autograd.modules",
    "autograd.convert",
    "learning.learn",
    "learning.accumulator",
    "autograd.receptive_field",
    "filters.gradients",
    "filters.blurs",
    "filters.banks",
    "learning.streaming",
]
# Pages whose commands are run too, in order, after the Python examples that make their files.
GUIDES = (
    "large_images.md",
    "motion_blur.md",
    "star_fields.md",
    "unknown_filter.md",
    "varying_kernel.md",
)
NEEDED = {"motion_blur.md": ["skimage"], "unknown_filter.md": ["PIL", "skimage"]}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL

pytestmark = [
    pytest.mark.parametrize("backend", ["cpu"], indirect=True),
    # PyTorch's rules for forward mode still use TorchScript.
    pytest.mark.filterwarnings(r"ignore:`torch.jit.\w+` is deprecated"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    # Dynamo instantiates one to inspect it.
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated"),
]


def run(test: doctest.DocTest) -> int:
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    report: list[str] = []
    result = runner.run(test, out=report.append)
    assert not result.failed, "".join(report)
    return result.attempted


def test_the_guides_have_examples(backend):
    assert {"README.md", "textbook.md", "limits.md", *GUIDES} <= {
        page.name for page in WITH_EXAMPLES
    }


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=[page.name for page in WITH_EXAMPLES])
def test_examples_of_a_page(page, backend, tmp_path, monkeypatch, capsys):
    for library in NEEDED.get(page.name, []):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    source = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", source, re.DOTALL | re.MULTILINE)
    examples = "\n".join(blocks)
    parser = doctest.DocTestParser()
    ran = run(parser.get_doctest(examples, {}, page.name, str(page), 0))
    assert ran >= source.count("\n>>> ")
    if page.name in GUIDES:
        pytest.importorskip("matplotlib")
        commands = re.findall(r"^tricorr (.*)$", source, re.MULTILINE)
        assert commands
        for command in commands:
            assert main(shlex.split(command)) == 0, capsys.readouterr().err


def test_the_notebook_is_the_textbook_page(backend, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    made = importlib.import_module("notebook").notebook()
    assert (ROOT / "examples" / "textbook.ipynb").read_text(encoding="utf-8") == made
    names: dict[str, object] = {}
    for cell in json.loads(made)["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            if cell["metadata"]:
                with pytest.raises(ValueError, match="diverges on these images"):
                    exec(source, names)
            else:
                exec(source, names)
    assert "epoch 10, loss" in capsys.readouterr().out


def test_pictures_are_small(backend):
    pictures = [*(ROOT / "docs").glob("*.webp"), *(ROOT / "docs").glob("*.png")]
    assert pictures
    assert max(picture.stat().st_size for picture in pictures) <= 80_000


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name, backend):
    module = importlib.import_module(f"tricorr.{name}")
    tests = [t for t in doctest.DocTestFinder().find(module, globs=vars(module)) if t.examples]
    assert tests
    for test in tests:
        test.globs = dict(vars(module))
        run(test)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_of_a_page_lead_somewhere(page, backend):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
