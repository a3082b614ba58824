"""`galago batch --on ray`: Ray Data hands blocks of rows to workers, and their answers are written here.

Only this process writes, with the same code as without Ray, so that a run may go on with or without a cluster. What
passes between the machines is paths, URLs and answers; the workers read the images themselves.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from galago.backends.memory_estimate import memory_needed
from galago.batch.job import Job
from galago.batch.outputs import Output
from galago.batch.remote import RemotePath
from galago.batch.rows import Row, Rows
from galago.batch.run import Counts, FinishedRow, add_rows, names_done, not_done, other_model
from galago.cluster.connection import Cluster, Workers, check_room, choose_threads, is_cuda
from galago.cluster.worker import AT_ONCE, Answers, Block, Ledger, Work, Worker
from galago.errors import EngineFailed, GalagoError, InvalidRequest
from galago.media.timeline import FrameSampling

BLOCK = 32
"""Rows that are handed out together."""


def check_output(out: Path | RemotePath | None) -> None:
    """Raise InvalidRequest for one file: what is kept is kept by the shard."""
    if out is not None and out.suffix and not (isinstance(out, Path) and out.is_dir()):
        raise InvalidRequest(f"--on ray writes shards; {out} is one file: name a folder with --out", "out")


def run_on_cluster(
    cluster: Cluster,
    job: Job,
    model: Mapping[str, Any],
    sampling: Callable[[FrameSampling], FrameSampling],
    workers: Workers,
    output: Output,
    counts: Counts,
    tell: Callable[[], None],
) -> None:
    """Carry out a batch; see run_batch. `model` are the arguments of galago.load, `sampling` chooses the frames of
    videos, of what is usual for the model.

    The rows come in the order in which they are answered.
    """
    ray = cluster.ray
    model = {**model, "threads": choose_threads(cluster, model["threads"])}
    room = _room(model)
    check_room(cluster, room)
    work = Work(model, job.questions, sampling, os.getcwd(), output.takes_images)
    first = next(iter(output), None)
    label = first["model"] if first else None
    done = names_done(output, job.questions, label or "", counts)
    also = job.sidecars.write if job.sidecars else lambda row, record: None

    def checked(answers: Iterable[Answers]) -> Iterator[FinishedRow]:
        for block in answers:
            if block.error is not None:
                raise block.error
            for one in block.rows:
                if label not in (None, one.record["model"]):
                    raise other_model({"model": label}, one.record["model"])
                yield one

    try:
        find = _answers_from_elsewhere if cluster.is_elsewhere else _answers
        answers = find(ray, lambda: not_done(job.to_do(), done), work, workers, room)
        add_rows(checked(answers), output, counts=counts, roots=job.roots, also=also, tell=tell)
    except ray.exceptions.RayError as error:
        raise _ended(error) from error


def _answers(
    ray: Any, rows: Callable[[], Rows], work: Work, workers: Workers, room: Mapping[str, float]
) -> Iterator[Answers]:
    """The answers of all blocks, as they come."""
    from ray.data import ActorPoolStrategy, DataContext, read_datasource

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # A block of Ray's holds one of ours, however small, or one worker would get all.
    context.target_max_block_size = 1
    ledger = ray.remote(num_cpus=0, max_restarts=-1)(Ledger).remote()
    resources = {{"CPU": "num_cpus", "GPU": "num_gpus"}.get(name, name): amount for name, amount in room.items()}
    pool = ActorPoolStrategy(
        min_size=workers.least, max_size=workers.most,
        max_concurrent_calls_per_actor=AT_ONCE, enable_true_multi_threading=True,
    )  # fmt: skip
    # Reading takes no core: where workers have them all it would never begin, and nothing would ever end.
    found = read_datasource(_source(rows, work.folder), override_num_blocks=1, num_cpus=0)
    answered = found.map_batches(
        Worker, fn_constructor_args=(work, ledger), batch_size=1, compute=pool, **resources
    )  # fmt: skip
    for batch in answered.iter_batches(batch_size=None, prefetch_batches=0):
        for packed in batch["answers"]:
            yield pickle.loads(packed)


class Driver:
    """A process of the cluster that uses Ray Data for one that is none of it."""

    def __init__(self, rows: Callable[[], Rows], work: Work, workers: Workers, room: Mapping[str, float]) -> None:
        import ray

        self._answers = _answers(ray, rows, work, workers, room)

    def next(self) -> Answers | None:
        """The answers of another block; None after the last."""
        return next(self._answers, None)


def _answers_from_elsewhere(ray: Any, *given: Any) -> Iterator[Answers]:
    driver = ray.remote(num_cpus=0)(Driver).remote(*given)
    while (answers := ray.get(driver.next.remote())) is not None:
        yield answers


def _source(rows: Callable[[], Rows], folder: str) -> Any:
    """A data source of Ray Data with a block of rows in each of its own, read one after another as they are wanted."""
    import pyarrow
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def read() -> Iterator[Any]:
        with suppress(OSError):
            os.chdir(folder)
        for block in blocks(rows()):
            yield pyarrow.table({"block": [pickle.dumps(block)]})

    class Source(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    return Source()


def blocks(rows: Rows) -> Iterator[Block]:
    """The rows in order, BLOCK at a time."""
    number, held = 0, list[Row]()
    for row in rows:
        held.append(row)
        if len(held) == BLOCK:
            yield Block(number, held)
            number, held = number + 1, []
    if held:
        yield Block(number, held)


def _room(model: Mapping[str, Any]) -> dict[str, float]:
    """What a worker takes of a machine, by Ray's names: a GPU, or cores and as much memory as the model needs."""
    if is_cuda(model):
        return {"CPU": model["threads"], "GPU": 1}
    options = {name: model[name] for name in ("precision", "profile", "device")}
    return {"CPU": model["threads"], "memory": memory_needed(model["model"], **options)}


def _ended(error: Exception) -> GalagoError:
    """What ended a run on Ray, in a line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, GalagoError):
        return cause
    told = [line for line in str(error).strip().splitlines() if line.strip()]
    return EngineFailed(f"Ray ended the run: {told[-1] if told else type(error).__name__}; the same command goes on")
