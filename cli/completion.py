"""`tricorr completion`: a shell's completion of commands, options and files, by shtab."""

from __future__ import annotations

import argparse

from .commands import Outcome

SHELLS = ("bash", "zsh", "tcsh")
#: Free-text arguments that are not file names.
_NO_FILES = ("LAYER", "N", "K", "F", "NAME", "ORDER", "ROWS", "ROWSxCOLUMNS", "SUFFIX")


def completion(args: argparse.Namespace) -> Outcome:
    """`tricorr completion`."""
    from ..images.extras import needs

    with needs("shell"):
        import shtab
    _complete_files(args.parser, shtab.FILE)
    script = shtab.complete(args.parser, args.shell)
    return Outcome({"shell": args.shell, "script": script}, script)


def _complete_files(parser: argparse.ArgumentParser, file: object) -> None:
    """Marks the arguments that are files, in all commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _complete_files(sub, file)
        elif action.metavar and action.metavar not in _NO_FILES:
            action.complete = file  # type: ignore[attr-defined]  # what shtab looks for
