"""`python -m tricorr.perf COMMAND`: measure, report, tune, look at machine code.

Each command is a module with `add_arguments(parser)` and `main(options) -> exit code`. Only the
module of the given command is imported.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

#: Command: (module, description).
COMMANDS = {
    "gpu": ("session.gpu", "the first minutes on a GPU: checks, families, rows, tiles, report"),
    "all": ("session.gpu", "measure every row there is time for, the most informative first"),
    "workloads": ("workloads", "list what is measured"),
    "cpu": ("benchmarks.cpu", "time calls and filters on CPU tensors beside other libraries"),
    "learn": ("benchmarks.learning", "time and memory of the ways to a kernel between two images"),
    "startup": ("benchmarks.startup", "time the import and the first call, in fresh processes"),
    "host": ("benchmarks.host", "time what a call costs the host, layer by layer"),
    "report": ("report", "turn rows into tables and plots"),
    "tune": ("session.gpu", "search the tiles of given workloads"),
    "predict": ("model.predict", "bounds of every workload from the static model, without a GPU"),
    "sweep": ("model.sweep", "estimates of thousands of calls beside their rooflines"),
    "fit": ("model.fit", "compare recorded rows with the static model, write its multipliers"),
    "codegen": ("model.codegen", "check the machine code of every configuration"),
}


#: Defaults of commands that share a module with another one.
DEFAULTS: dict[str, dict[str, object]] = {
    "all": {"stage": ["rows"], "minutes": 8.0},
    "tune": {"stage": ["check", "tune"], "minutes": 5.0},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; an error is one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tricorr.perf",
        description="Benchmarks of tricorr. COMMAND --help shows its options.",
        epilog=f"commands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    name = parser.parse_args(arguments[:1]).command
    module, what = COMMANDS[name]
    try:
        command = import_module(f".{module}", __package__)
        own = argparse.ArgumentParser(prog=f"{parser.prog} {name}", description=what)
        command.add_arguments(own)
        own.set_defaults(**DEFAULTS.get(name, {}))
        options = own.parse_args(arguments[1:])
        return int(command.main(options))
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, ValueError, OSError, KeyError, ModuleNotFoundError) as error:
        print(f"{parser.prog} {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
