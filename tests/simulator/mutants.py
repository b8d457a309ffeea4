"""Plants faults in kernels, for tests that check that simulated calls notice them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime.jit import JITFunction

#: Changes a function's syntax tree in place; returns whether there was something to change.
Change = Callable[[ast.AST], bool]


def _is_access(node: ast.AST, kind: str, pointer: str) -> bool:
    """Whether a node is a load or store of Triton or Gluon, whose address starts with `pointer`."""
    accesses = (f"tl.{kind}", f"gl.{kind}")
    if not isinstance(node, ast.Call) or ast.unparse(node.func) not in accesses or not node.args:
        return False
    names = (name.id for name in ast.walk(node.args[0]) if isinstance(name, ast.Name))
    return any(name.startswith(pointer) for name in names)


def without(keyword: str, kind: str, pointer: str) -> Change:
    """Drops `keyword` of each load or store whose address starts with the name `pointer`."""

    def change(tree: ast.AST) -> bool:
        changed = False
        for node in ast.walk(tree):
            if _is_access(node, kind, pointer):
                assert isinstance(node, ast.Call)
                # Triton refuses `other` without `mask`.
                dropped = {"mask": ("mask", "other")}.get(keyword, (keyword,))
                kept = [given for given in node.keywords if given.arg not in dropped]
                changed |= len(kept) < len(node.keywords)
                node.keywords = kept
        return changed

    return change


def up_to_and_including(extent: str) -> Change:
    """Makes each `... < extent` a `... <= extent`."""

    def change(tree: ast.AST) -> bool:
        changed = False
        for node in ast.walk(tree):
            if not isinstance(node, ast.Compare) or not isinstance(node.ops[-1], ast.Lt):
                continue
            names = (n.id for n in ast.walk(node.comparators[-1]) if isinstance(n, ast.Name))
            if extent in names:
                node.ops[-1], changed = ast.LtE(), True
        return changed

    return change


def without_condition(name: str) -> Change:
    """Drops the bodies of each `if` whose condition calls the function `name`."""

    def change(tree: ast.AST) -> bool:
        found = [
            node for node in ast.walk(tree)
            if isinstance(node, ast.If) and name in ast.unparse(node.test)
        ]  # fmt: skip
        for node in found:
            node.body = [ast.Pass()]
        return bool(found)

    return change


def _functions() -> Iterator[tuple[dict[str, Any], str, JITFunction[Any]]]:
    for name, module in list(sys.modules.items()):
        if name.startswith("tricorr.kernels"):
            for attribute, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    yield vars(module), attribute, value


@contextmanager
def planted(name: str, change: Change) -> Iterator[None]:
    """Inside, the package's device function `name` is changed. To be used while simulating.

    Raises:
        LookupError: there is no such function, or nothing in it to change.
    """
    from tricorr.ops.launch.prepared import forget_prepared

    before = list(_functions())
    # All functions are made anew, as each keeps compiled code of itself and of its callees.
    fresh = {id(f): type(f)(f.fn) for _, _, f in before}
    found = {id(f) for _, _, f in before if f.fn.__name__ == name}
    changed = [_change(fresh[key], change) for key in found]
    if not any(changed):
        raise LookupError(f"nothing to change in {name}: say where it went")
    for where, attribute, value in before:
        where[attribute] = fresh[id(value)]
    forget_prepared()  # prepared calls hold kernels
    try:
        yield
    finally:
        forget_prepared()
        for where, attribute, value in before:
            where[attribute] = value


def _change(function: JITFunction[Any], change: Change) -> bool:
    tree = ast.parse(function.src)
    changed = change(tree)
    function._unsafe_update_src(ast.unparse(tree))
    return changed
