"""Tasks, one file each: how published data is read, what is asked, and how an answer is judged."""

from __future__ import annotations

from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import iter_modules

from galago.errors import InvalidRequest, quoted
from galago.lab.eval.case import Task


def task_names() -> list[str]:
    """The tasks that come along."""
    return sorted(module.name for module in iter_modules(__path__))


def load_task(name: str) -> Task:
    """A task by its name, or from a Python file with a TASK of its own. Raises InvalidRequest."""
    if name in task_names():
        module = import_module(f"{__name__}.{name}")
    elif name.endswith(".py") and Path(name).is_file():
        spec = spec_from_file_location(Path(name).stem, name)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        raise InvalidRequest(f"no task {quoted(name)}; there are {', '.join(task_names())}, and Python files", "task")
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise InvalidRequest(f"{name} has no TASK", "task")
    return task
