"""Packages tricorr for the Hugging Face kernels hub: `python -m tricorr.hub.publish DIRECTORY`.

Writes a kernel-builder project (build.toml, flake.nix, CARD.md, torch-ext/tricorr) and its built
variants, one per backend (build/torch-cuda, ...), which for a package that is all Python are copies
that `kernels.get_local_kernel` loads.

The hub's requirements (https://huggingface.co/docs/kernels/kernel-requirements) and how they are
met:

- several versions in one process: imports are relative, and the operators are registered under a
  name that depends on the source, `add_op_namespace_prefix` of the generated module `_ops`;
- imports of the standard library, PyTorch and Triton only: what else there is, such as learning
  with its progress bar, stays out; the modules are found by following the imports of the API;
- layers without state in a module `layers` (hub/layers.py).
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "tricorr"
BACKENDS = ("cpu", "cuda", "rocm")
#: The hub's major version: 0 says that the API may still change.
VERSION = 0

#: Modules whose names in tricorr's __init__.py are the kernel's API.
API = (
    "autograd.convert",
    "autograd.functional",
    "autograd.modules",
    "autograd.receptive_field",
    "ops.errors",
)
LAYERS = "hub.layers"

_OPERATOR_NAMES = (
    (r'Library\("tricorr"', 'Library(add_op_namespace_prefix("").removesuffix("::")'),
    (r'f"tricorr::\{(\w+)\}"', r"add_op_namespace_prefix(\1)"),
    (r'record_function\("tricorr::(\w+)"\)', r'record_function(add_op_namespace_prefix("\1"))'),
    (r"torch\.ops\.tricorr\b", "registered"),
)
_OPS_IMPORT = "from .._ops import add_op_namespace_prefix\nfrom .._ops import ops as registered\n"

_BUILD = """\
[general]
name = "{name}"
version = {version}
edition = 5
license = "apache-2.0"
backends = [{backends}]

[torch-noarch]
pyext = ["py", "json"]
"""

_FLAKE = """\
{
  description = "Flake for tricorr kernels";

  inputs = {
    kernel-builder.url = "github:huggingface/kernels";
  };

  outputs =
    { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
"""

_CARD = """\
---
library_name: kernels
license: apache-2.0
---

# tricorr

Triton kernels for 2-D cross-correlation, forward and both gradients: functions with the arguments
of `torch.nn.functional.conv2d`, and layers `Conv2D` and `ConvTranspose2D` for `kernels.kernelize`.
"""

_LAYERS = f"""\
\"\"\"Layers for kernels.kernelize.\"\"\"

from .{LAYERS} import Conv2D, ConvTranspose2D

__all__ = ["Conv2D", "ConvTranspose2D"]
"""

_OPS = """\
import torch

_OPS_NAME = "{id}"

ops = getattr(torch.ops, _OPS_NAME)


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{{_OPS_NAME}}::{{op_name}}"
"""

# What versions of `kernels` that look for build/<variant>/<name> find there.
_COMPATIBLE = """\
import importlib.util
import sys
from pathlib import Path

_init = Path(__file__).parent.parent / "__init__.py"
_spec = importlib.util.spec_from_file_location("{id}", _init)
_module = importlib.util.module_from_spec(_spec)
sys.modules["{id}"] = _module
_spec.loader.exec_module(_module)
globals().update({{name: getattr(_module, name) for name in _module.__all__}})
__all__ = list(_module.__all__)
"""


def write(directory: Path) -> None:
    """Write the project and its built variants.

    Args:
        directory: made if it is not there.
    """
    package = sources()
    backends = ", ".join(f'"{backend}"' for backend in BACKENDS)
    build = _BUILD.format(name=NAME, version=VERSION, backends=backends)
    files = {"build.toml": build, "flake.nix": _FLAKE, "CARD.md": _CARD}
    files |= {f"torch-ext/{NAME}/{path}": text for path, text in package.items()}
    for backend in BACKENDS:
        variant = _variant(package, backend)
        files |= {f"build/torch-{backend}/{path}": text for path, text in variant.items()}
    for path, text in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def sources() -> dict[str, str]:
    """Path and text of every file of the kernel that kernel-builder does not generate."""
    files = {"__init__.py": _init(), "layers.py": _LAYERS}
    waiting = [f"{module.replace('.', '/')}.py" for module in (*API, LAYERS)]
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        waiting += _imported(path, text)
        files[path] = _renamed(path, text)
    for tuned in sorted(ROOT.glob("ops/plan/tuned/*.json")):
        files[tuned.relative_to(ROOT).as_posix()] = tuned.read_text(encoding="utf-8")
    return dict(sorted(files.items()))


def _init() -> str:
    """An __init__.py with the API's names, taken from tricorr's own."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module in API
    ]
    names = sorted({alias.asname or alias.name for node in imports for alias in node.names})
    lines = [f'"""{ast.get_docstring(tree)}"""', "", "from . import layers"]
    lines += [ast.unparse(node) for node in imports]
    lines += ["", "__all__ = [", *(f'    "{name}",' for name in ["layers", *names]), "]"]
    return "\n".join(lines) + "\n"


def _imported(path: str, text: str) -> Iterator[str]:
    """The package's files that a file imports anywhere, and their packages.

    Raises:
        ValueError: an import that the hub does not allow.
    """
    package = Path(path).parent
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            outside = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            base = (ROOT / package).joinpath(*[".."] * (node.level - 1)).resolve()
            base = base.joinpath(*(node.module or "").split("."))
            yield from _files_of(base, [alias.name for alias in node.names])
            continue
        else:
            continue
        for module in outside:
            if module.partition(".")[0] not in {*sys.stdlib_module_names, "torch", "triton"}:
                raise ValueError(f"{path} imports {module}, which the kernels hub does not allow")


def _files_of(base: Path, names: list[str]) -> Iterator[str]:
    """The files behind `from base import names`: a module, or a package and modules in it."""
    if base.with_suffix(".py").is_file():
        found = [base.with_suffix(".py")]
    else:
        modules = [base / f"{name}.py" for name in names]
        packages = [base / name / "__init__.py" for name in names]
        found = [file for file in (base / "__init__.py", *modules, *packages) if file.is_file()]
    for file in found:
        packages = [parent / "__init__.py" for parent in file.parents if ROOT in parent.parents]
        yield from (path.relative_to(ROOT).as_posix() for path in (file, *packages))


def _renamed(path: str, text: str) -> str:
    """The file with its operators in the kernel's own namespace.

    Raises:
        ValueError: an operator's name is written in a way that is not known here.
    """
    renamed = text
    for pattern, replacement in _OPERATOR_NAMES:
        renamed = re.sub(pattern, replacement, renamed)
    for node in ast.walk(ast.parse(renamed)):
        value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and (value == NAME or value.startswith(f"{NAME}::")):
            raise ValueError(f"{path} names an operator in a way that is not known: {value!r}")
    if renamed == text:
        return text
    return renamed.replace("\nimport torch\n", f"\nimport torch\n\n{_OPS_IMPORT}", 1)


def _variant(package: dict[str, str], backend: str) -> dict[str, str]:
    """The built variant for one backend, as kernel-builder would write it."""
    digest = hashlib.sha256("\0".join(f"{k}\0{v}" for k, v in package.items()).encode())
    unique = f"_{NAME}_{backend}_{digest.hexdigest()[:7]}"
    files = {
        **package,
        "_ops.py": _OPS.format(id=unique),
        f"{NAME}/__init__.py": _COMPATIBLE.format(id=unique),
    }
    hashes = {
        path: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for path, text in sorted(files.items())
    }
    metadata = {
        "name": NAME,
        "id": unique,
        "version": VERSION,
        "license": "apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": hashes},
    }
    return {**files, "metadata.json": json.dumps(metadata, indent=2) + "\n"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tricorr.hub.publish",
        description="Write tricorr as a project and a kernel for the Hugging Face kernels hub.",
    )
    parser.add_argument("directory", type=Path, help="where to; made if it is not there")
    directory = parser.parse_args().directory
    write(directory)
    print(f"{directory}: a kernel-builder project; kernels load from {directory / 'build'}")


if __name__ == "__main__":
    main()
