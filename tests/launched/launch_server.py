"""A process on the stub driver that runs calls by name: one line in, one line of JSON out."""

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
    os.dup2(2, 1)  # what the calls print is no answer
    stub, driver = pretend(library)
    import uncompiled

    if mode == "uncompiled":
        uncompiled.without_compiler(stub)
    compilations = uncompiled.Compilations()

    import torch
    from launched_calls import CALLS
    from launched_checks import CHECKS
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
            report = observer.observe(chosen.call, operands, chosen.launches, chosen.prepared)
            print(json.dumps(dataclasses.asdict(report)), file=answers, flush=True)
        else:
            try:
                CHECKS[name](stub, driver, observer, compilations)
                answer = ""
            except Exception:
                answer = traceback.format_exc()
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
