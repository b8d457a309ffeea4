"""A process on the stub driver that runs calls. For each line in, it writes one line of JSON.

A line is [kind, name]: a "call" of launched_calls.py, a "check" of launched_checks.py, or "drawn"
calls, whose name is a seed.
"""

import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path

from stub_driver import pretend


def main() -> None:
    library, mode = Path(sys.argv[1]), sys.argv[2]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of the calls go to stderr
    stub, driver = pretend(library)
    import uncompiled

    if mode == "uncompiled":
        uncompiled.without_compiler(stub)
    compilations = uncompiled.Compilations()

    import torch
    from launched_calls import CALLS, drawn
    from launched_checks import CHECKS
    from launched_tiles import forced
    from observer import Observer

    torch.set_num_threads(1)
    observer = Observer(stub, compilations)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        kind, name = json.loads(line)
        torch.manual_seed(0)
        if kind == "call":
            chosen = CALLS[name]
            operands = chosen.operands()
            report = observer.observe(chosen.call, operands, chosen.launches)
            print(json.dumps(dataclasses.asdict(report)), file=answers, flush=True)
        elif kind == "drawn":
            problems = {}
            for label, call, operands in drawn(150, int(name)):
                if found := observer.observe(call, operands()).problems:
                    problems[label] = found
            for label, call, given in forced(10, int(name)):
                if found := observer.observe(call, given, prepared=False).problems:
                    problems[label] = found
            print(json.dumps(problems), file=answers, flush=True)
        else:
            try:
                CHECKS[name](stub, driver, observer, compilations)
                answer = ""
            except Exception:  # the traceback is the answer
                answer = traceback.format_exc()
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # skip slow shutdown
