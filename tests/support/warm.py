"""Programs in processes of their own that need not import torch and Gradio again: forked from one that has.

An import of both takes some five seconds of a processor, building the CPU kernels one more, and the tests start some
forty such programs.
"""

import atexit
import contextlib
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import constants
from places import REPOSITORY

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["components.page", "gemma3_core.engine", "gemma3_core.models.multimodal", "tests.support.built_kernels"]
)


class Program:
    """A running program, with what the tests use of `subprocess.Popen`."""

    def __init__(self, file: Path, arguments: Sequence[str], environment: Mapping[str, str], into: Path | None = None):
        """Starts a Python file in the repository. Its output and its errors go to `stdout` and `stderr` in the folder
        `into`, or both to this file, or to this process's."""
        with _path_of_the_repository():
            self._process = _FORKED.Process(target=_run, args=(file, list(arguments), dict(environment), into))
            self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float) -> int:
        """Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode


def ran(file: Path, arguments: Sequence[str], environment: Mapping[str, str], into: Path) -> tuple[int, str, str]:
    """Runs a Python file to its end: its status, its output and its errors, which lie in the folder `into`."""
    status = Program(file, arguments, environment, into).wait(timeout=300)
    return status, (into / "stdout").read_text(), (into / "stderr").read_text()


@contextlib.contextmanager
def _path_of_the_repository():
    """The first program starts the server from which all are forked: it imports from here."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def _run(file: Path, arguments: list[str], environment: dict[str, str], into: Path | None) -> None:
    """Runs the file as `python file arguments` does, to its exit handlers."""
    for number, name in ((1, "stdout"), (2, "stderr")) if into is not None else ():
        with (into / name if into.is_dir() else into).open("ab") as said:
            os.dup2(said.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    importlib.reload(constants)  # which huggingface_hub has read from the environment
    os.chdir(REPOSITORY)
    tempfile.tempdir = None  # the environment may name another one
    sys.argv = [str(file), *arguments]
    try:
        runpy.run_path(str(file), run_name="__main__")
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
