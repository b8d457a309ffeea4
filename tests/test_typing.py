"""mypy reports calls that the functions refuse, and accepts calls that they take."""

import sys

import pytest

import tricorr

WRONG = """
corr2d(x, w, stride="2")
corr2d(x, w, dilation=(1, 2, 3))
corr2d(x, w, padding="full")
corr2d(x, w, padding_mode="mirror")
corr2d(x, w, activation="tanh")
corr2d(x, w, precision="fp16")
tricorr.corr_transpose2d(x, w, padding="same")
tricorr.Conv2D(1, 2, kernel_size=1.5)
tricorr.Conv2D(1, 2, 3, padding_mode="symmetric")
filters.gaussian_blur(x, "wide")
filters.spatial_gradient(x, "roberts")
filters.sobel([[1.0]])
filters.sobel("photo.png").mean(dim=(-2, -1))
""".strip().splitlines()
RIGHT = """
corr2d(x, w, None, (1, 2), ((0, 1), (1, 0)), [1, 1], padding_mode="reflect", precision="tf32")
corr2d(x, w, padding="same", activation="relu").requires_grad_()
tricorr.Conv2D(kernel_size=(1, 2))
filters.gaussian_blur(x, (2.0, 1.0), kernel_size=(3, 5), channel_axis=-1).requires_grad_()
filters.log_gabor(np.zeros((9, 9)), 5, padding_mode="reflect").astype(float)
filters.sobel("photo.png", eps=1e-3).astype(float)
""".strip().splitlines()
HEAD = """
import numpy as np
import torch
import tricorr
from tricorr import corr2d, filters
x, w = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3)
""".strip().splitlines()


@pytest.mark.slow
def test_mypy_finds_wrong_arguments(tmp_path, monkeypatch):
    api = pytest.importorskip("mypy.api")
    root = tmp_path / "root"
    root.mkdir()
    (root / "tricorr").symlink_to(tricorr.__path__[0])
    monkeypatch.setenv("MYPYPATH", str(root))
    file = tmp_path / "calls.py"
    file.write_text("\n".join([*HEAD, *RIGHT, *WRONG]), encoding="utf-8")
    options = ["--python-executable", sys.executable, "--cache-dir", str(tmp_path / "cache")]
    skipped = ["--follow-imports=silent", "--no-error-summary", "--ignore-missing-imports"]
    report, problems, _ = api.run([*options, *skipped, "--python-version", "3.11", str(file)])
    assert not problems
    first = len(HEAD) + len(RIGHT) + 1
    lines = {int(line.split(":")[1]) for line in report.splitlines() if ": error:" in line}
    assert lines == set(range(first, first + len(WRONG))), report
