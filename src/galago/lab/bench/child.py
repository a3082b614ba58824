"""A process that measures one thing: what it is to do comes as JSON on its command line.

It tells what it finds on standard output, one JSON object a line; `event` says what the line is about: `prepared`,
`loaded`, `run`, `end`, `ceilings` or `failed`. A process of its own for each case makes the peak of memory and the
time to load those of the case.
"""

import json
import os
import sys
from typing import Any, TextIO

from galago.errors import GalagoError
from galago.lab.bench.case import BenchCase


def main() -> int:
    task = json.loads(sys.argv[1])
    # Whatever a library prints must not get between the lines of JSON.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(message: dict[str, Any]) -> None:
        _write(out, message)

    try:
        if "prepare" in task:
            from galago.lab.bench.measure import warm_files

            warm_files(BenchCase(**task["prepare"]))
            tell({"event": "prepared"})
        elif "case" in task:
            from galago.lab.bench.measure import measure_case

            measure_case(BenchCase(**task["case"]), task["started"], tell)
        else:
            from galago.lab.bench.ceilings import measure_ceilings

            tell({"event": "ceilings", **measure_ceilings(task["threads"], task["device"])})
    except GalagoError as error:
        tell({"event": "failed", "error": str(error)})
        return 2
    return 0


def _write(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
