"""A plan of cases and rounds, and the results of a run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from galago.lab.bench.case import BenchCase
from galago.lab.bench.processes import ChildFailed, ChildMessage, child_command, run_child
from galago.lab.bench.results import BenchResult, best_and_median
from galago.store.hub import RANDOM
from galago.system.machine import describe_machine
from galago.version import INSTALLED

StepProgress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is being measured)."""

TIMES = ("encode_s", "prefill_s", "ttft_s", "again_s", "decode_s", "total_s")
PEAKS = ("peak_rss_bytes", "peak_device_bytes")
SAME_TYPE = {"int4": "int8"}
"""The type that a precision multiplies in, where that has another name."""


@dataclass(frozen=True)
class BenchPlan:
    """Cases that are measured in turn, each in a process of its own, `rounds` times.

    In turn, so that whatever else the machine does hits all alike. `ceilings` measures before every process what
    the machine reaches then; `random` notes that the models' weights are random.
    """

    cases: tuple[BenchCase, ...]
    rounds: int = 1
    ceilings: bool = True
    random: bool = False


@dataclass(frozen=True)
class BenchOutcome:
    """A result for each case of which at least one process came to its end, and why others did not."""

    results: list[BenchResult]
    failures: list[str]


def run_bench(plan: BenchPlan, tell: StepProgress = lambda done, total, what: None) -> BenchOutcome:
    """Carry out a plan. A case that fails is left out of later rounds."""
    under_way = _Session(plan, tell)
    for turn in range(plan.rounds):
        under_way.round(f"round {turn + 1} of {plan.rounds}: " if plan.rounds > 1 else "")
    found = under_way.processes.items()
    results = [_make_result(plan, case, told, under_way.ceilings[case]) for case, told in found if told]
    return BenchOutcome(results, under_way.failures)


class _Session:
    """A run in progress: the messages of the child processes so far, by case and process (see measure.py)."""

    def __init__(self, plan: BenchPlan, tell: StepProgress) -> None:
        self.plan = plan
        self.tell = tell
        self.processes: dict[BenchCase, list[list[ChildMessage]]] = {case: [] for case in plan.cases}
        self.ceilings: dict[BenchCase, list[ChildMessage]] = {case: [] for case in plan.cases}
        self.failures: list[str] = []
        self._left = list(plan.cases)
        self._done = 0
        # A message is a step.
        self._steps = plan.rounds * sum(case.runs + 3 + plan.ceilings for case in plan.cases)

    def round(self, place: str) -> None:
        for case in list(self._left):
            if self.plan.ceilings:
                self._measure_ceilings(case, place)
            try:
                self._child(f"{place}{case.name}, reading its files", {"prepare": asdict(case)})
                task = {"case": asdict(case), "started": time.monotonic()}
                self.processes[case].append(self._child(place + case.name, task))
            except ChildFailed as failure:
                self.failures.append(f"{case.name}: {failure}")
                self._left.remove(case)

    def _measure_ceilings(self, case: BenchCase, place: str) -> None:
        task = {"threads": case.threads, "device": case.device}
        try:
            self.ceilings[case] += self._child(f"{place}what the machine reaches", task)
        except ChildFailed as failure:
            self.failures.append(f"what the machine reaches: {failure}")

    def _child(self, what: str, task: ChildMessage) -> list[ChildMessage]:
        messages: list[ChildMessage] = []

        def hear(message: ChildMessage) -> None:
            messages.append(message)
            self._done += 1
            self.tell(self._done, self._steps, what)

        self.tell(self._done, self._steps, what)
        run_child(child_command(task), hear)
        return messages


def _summarize_ceilings(measured: Sequence[ChildMessage]) -> dict[str, Any]:
    """The ceilings over all rounds, each {"best", "median"}; empty if they were not measured."""
    if not measured:
        return {}
    products = [m["matmul_tflop_per_s"] for m in measured]
    return {
        "read_gb_per_s": best_and_median([m["read_gb_per_s"] for m in measured], higher=True),
        "matmul_tflop_per_s": {n: best_and_median([p.get(n) for p in products], higher=True) for n in products[0]},
    }


def _make_result(
    plan: BenchPlan, case: BenchCase, processes: list[list[ChildMessage]], measured: list[ChildMessage]
) -> BenchResult:
    told = [message for messages in processes for message in messages]
    loaded, runs, ends = ([m for m in told if m["event"] == kind] for kind in ("loaded", "run", "end"))
    facts, ceilings = loaded[0], _summarize_ceilings(measured)
    firsts = [messages[1] for messages in processes]
    figures = {
        "load_s": best_and_median([m["load_s"] for m in loaded]),
        "ready_s": best_and_median([m["ready_s"] for m in firsts]),
        **{key: best_and_median([m[key] for m in runs]) for key in TIMES},
        "decode_tokens_per_s": best_and_median([m["decode_tokens_per_s"] for m in runs], higher=True),
        **{key: best_and_median([m[key] for m in firsts]) for key in PEAKS if key in firsts[0]},
        "peak_of_all_bytes": best_and_median([m["peak_of_all_bytes"] for m in ends]),
        **_throughputs(facts, runs),
    }
    return {
        "engine": "galago",
        "version": INSTALLED,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**describe_machine(), "cores": facts["cores"], "torch": facts["torch"]},
        "model": facts["model"].removesuffix(RANDOM) if plan.random else facts["model"],
        **{key: facts[key] for key in ("precision", "device", "threads", "kernels")},
        "random_weights": plan.random,
        "image": case.image,
        "crops": facts.get("crops"),
        "prompt_tokens": runs[0]["prompt_tokens"],
        "tokens": case.tokens,
        "tokens_made": min(m["tokens"] for m in runs),
        "processes": len(processes),
        "runs": len(runs),
        **figures,
        "ceilings": ceilings,
        "share_of_ceiling": {**_shares(figures, ceilings, facts["precision"]), **_share_of_read(facts, runs)},
    }


def _throughputs(facts: Mapping[str, Any], runs: list[ChildMessage]) -> dict[str, dict[str, float | None]]:
    """GB/s of weights in decode and in a plain read, Tera-operations a second in the rest; see families/work.py."""
    if "decode_bytes" not in facts:
        return {}
    speeds = [m["decode_tokens_per_s"] for m in runs]
    decode = [None if speed is None else facts["decode_bytes"] * speed / 1e9 for speed in speeds]
    prefill = [facts["prefill_flop"] * m["prompt_tokens"] / m["prefill_s"] / 1e12 for m in runs]
    encode = [facts["encode_flop"] / m["encode_s"] / 1e12 for m in runs]
    named = {"decode_gb_per_s": decode, "read_gb_per_s": [m["read_gb_per_s"] for m in runs]}
    named |= {"prefill_tflop_per_s": prefill, "encode_tflop_per_s": encode}
    return {key: best_and_median(values, higher=True) for key, values in named.items()}


def _shares(figures: Mapping[str, Any], ceilings: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Figures as shares of their ceilings, 0..1: the best of the best, the median of the median."""
    if not ceilings or "prefill_tflop_per_s" not in figures:
        return {}
    product = ceilings["matmul_tflop_per_s"].get(SAME_TYPE.get(precision, precision))
    pairs = {"prefill": (figures["prefill_tflop_per_s"], product), "encode": (figures["encode_tflop_per_s"], product)}
    known = {name: (done, most) for name, (done, most) in pairs.items() if done["best"] and most and most["best"]}
    return {n: {which: round(done[which] / most[which], 3) for which in most} for n, (done, most) in known.items()}


def _share_of_read(facts: Mapping[str, Any], runs: list[ChildMessage]) -> dict[str, Any]:
    """How fast decode read its weights, over how fast a plain read right after it did, 0..1."""
    pairs = [(m["decode_tokens_per_s"], m.get("read_gb_per_s")) for m in runs]
    shares = [facts.get("decode_bytes", 0) * speed / 1e9 / read for speed, read in pairs if speed and read]
    return {"decode": best_and_median(shares, higher=True)} if any(shares) else {}
