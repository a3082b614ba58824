"""Carrying out as many requests at a time as llama-server has slots, each in a thread that reads its answer."""

import threading
import time
from dataclasses import dataclass

from galago.backends.llama_server.answer import Answer
from galago.backends.llama_server.model import LlamaModel
from galago.backends.queued import Task, carry_out, end_late, finish
from galago.engine.metrics import Metrics, Snapshot
from galago.engine.request_queue import RequestQueue
from galago.engine.sequence import Sequence
from galago.errors import GalagoError


@dataclass(frozen=True, eq=False)
class Running:
    task: Task
    answer: Answer
    thread: threading.Thread


class Slots:
    """Takes requests from a queue while a slot is free and llama-server is ready."""

    def __init__(self, model: LlamaModel, queue: RequestQueue, metrics: Metrics) -> None:
        self._model, self._queue, self._metrics = model, queue, metrics
        self._running: dict[Task, Running] = {}
        model.server.on_change = queue.wake
        model.server.on_failure = queue.close
        metrics.watch(self.snapshot)

    def snapshot(self) -> Snapshot:
        return Snapshot(len(self._queue), len(self._running))

    def run(self) -> None:
        while not self._queue.closed:
            end_late(self._queue, self._metrics)
            self._stop_unwanted()
            has_room = len(self._running) < self._model.slots and self._model.server.is_ready
            job = self._queue.peek() if has_room else None
            if isinstance(job, Task):
                if self._queue.pop(job):
                    self._begin(job)
            else:
                self._queue.wait(self._until_deadline())

    def shut_down(self, why: GalagoError) -> None:
        self._queue.close(why)
        running = list(self._running.values())
        for one in running:
            one.answer.stop()
        self._model.server.close()
        for one in running:
            one.thread.join()
        self._queue.shut_down(why)
        end_late(self._queue, self._metrics)
        self._metrics.close()
        del self._model

    def _begin(self, task: Task) -> None:
        self._metrics.observe_wait(time.perf_counter() - task.arrival)
        assert isinstance(task.prepared, Answer)
        thread = threading.Thread(target=self._carry_out, args=(task,), name="galago-llama-answer", daemon=True)
        self._running[task] = Running(task, task.prepared, thread)
        thread.start()

    def _carry_out(self, task: Task) -> None:
        s = Sequence(task)
        how = carry_out(task, s, self._queue, self._metrics)
        self._running.pop(task, None)
        finish(s, how, self._queue, self._metrics)
        self._queue.wake()

    def _stop_unwanted(self) -> None:
        """Close the connections of requests that were cancelled, or whose time is over: their threads end them."""
        for one in list(self._running.values()):
            if one.task.cancelled or one.task.deadline_error():
                one.answer.stop()

    def _until_deadline(self) -> float | None:
        """Seconds until the next deadline that has not passed."""
        now = time.perf_counter()
        jobs = [*self._queue.jobs(), *self._running]
        left = [job.deadline - now for job in jobs if job.deadline is not None and job.deadline > now]
        return min(left, default=None)
