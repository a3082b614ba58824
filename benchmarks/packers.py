"""Two packers in one cache folder, round after round, a third of them killed: is every load right?

python benchmarks/packers.py --rounds 200

Both believe that they are process 1, as the first process of every container does. Each round begins with an empty
cache and two processes, the second a little later, that pack the bundled model in int8, as slowly as if it were a
large one; of three packers one is killed at a random moment. Then a third process asks for the copy: right is what one
packer alone makes, byte for byte, and nothing left behind.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from galago.store import hub, packing

FORK = multiprocessing.get_context("fork")
"""So that torch is imported once, not by every packer."""
PAUSE_S = 0.002
"""After each tensor that is packed."""
Told = str
"""The digest of the copy that a load is given, or the error in its place."""


def load(folder: Path, to: Connection) -> None:
    os.environ["GALAGO_CACHE"] = str(folder)
    os.getpid = lambda: 1
    packing.WORTH_KEEPING = 0
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    try:
        file = packing.packed_copy(hub.locate("scenes"), "int8", lambda done, total: time.sleep(PAUSE_S)).weights[0]
        to.send(hashlib.sha256(file.read_bytes()).hexdigest())
    except Exception as error:  # an error is a result here
        to.send(f"{type(error).__name__}: {error}")


def started(folder: Path) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=load, args=(folder, there))
    process.start()
    there.close()
    return process, here


def ended(process: multiprocessing.process.BaseProcess, told: Connection) -> Told | None:
    """What a process told; None if it was killed before."""
    try:
        found: Told | None = told.recv()
    except EOFError:
        found = None
    process.join()
    return found


def one_round(
    folder: Path, begins: list[float], kills: list[float | None]
) -> tuple[list[Told | None], Told | None, int]:
    """What the packers and the load after them told, and how many files are left in the folder beside the copy."""
    events = [(at, False, i) for i, at in enumerate(begins)]
    events += [(begins[i] + at, True, i) for i, at in enumerate(kills) if at is not None]
    start, packers = time.monotonic(), {}
    for at, kill, number in sorted(events):
        time.sleep(max(0.0, start + at - time.monotonic()))
        if kill:
            packers[number][0].kill()
        else:
            packers[number] = started(folder)
    packed = [ended(*packer) for packer in packers.values()]
    after = ended(*started(folder))
    left = [f for f in (folder / "packed").iterdir() if f.suffix != ".safetensors" and f.name != ".lock"]
    return packed, after, len(left)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rounds", type=int, default=200)
    asked.add_argument("--seed", type=int, default=0)
    options = asked.parse_args()
    chance, counted = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as base:
        ended(*started(Path(base, "first")))  # reads what is read from disk once
        begin = time.monotonic()
        right = ended(*started(Path(base, "alone")))
        took = time.monotonic() - begin
        assert right is not None
        doomed = chance.sample(range(2 * options.rounds), 2 * options.rounds // 3)
        for number in range(options.rounds):
            kills = [chance.uniform(0, took) if 2 * number + i in doomed else None for i in range(2)]
            folder = Path(base, str(number))
            packed, after, left = one_round(folder, [0.0, chance.uniform(0, took / 2)], kills)
            counted["packers killed"] += sum(told is None for told in packed)
            counted["packers that failed or had a wrong copy"] += sum(
                told is not None and told != right for told in packed
            )
            counted["loads after them that were wrong"] += after != right
            counted["rounds with something left behind"] += left > 0
            shutil.rmtree(folder)
            print(f"\r{number + 1} of {options.rounds}", end="", file=sys.stderr, flush=True)
    print(json.dumps({"rounds": options.rounds, "seconds_of_one_packer": round(took, 2), **counted}, indent=1))


if __name__ == "__main__":
    main()
