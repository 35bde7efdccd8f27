"""Processes for the fault tests, forked from one that has imported everything, so that each starts in milliseconds.

The parent is not the test process, because a forked process does not inherit its threads.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Ended(NamedTuple):
    """The exit code of a process (or minus the signal that killed it), its id and its output on stderr.

    ``at`` is the time of its last write to stderr, in the nanoseconds of file times.
    """

    code: int
    pid: int
    errors: str
    at: int


class Commands:
    """A context manager that runs ``echo-ext`` commands, each in its own process."""

    def __init__(self, folder):
        self._folder = Path(folder)
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.communicate(timeout=60)

    def start(self, *calls, **limits):
        """Start all calls, given as lists of words, at the same moment; return their ids.

        ``file_size`` limits the size of each file that they write. With ``obeys_modes``, root is bound by the modes of
        files as well.
        """
        errors = [str(self._folder / f"errors-{time.monotonic_ns()}-{index}") for index in range(len(calls))]
        for file in errors:
            Path(file).touch()  # a call may be killed before it opens its file
        words = [[str(word) for word in call] for call in calls]
        return list(zip(self._ask(do="start", calls=words, errors=errors, **limits), errors, strict=True))

    def wait(self, started):
        """Wait until they have ended; return their exit codes and output."""
        codes = self._ask(do="wait", pids=[pid for pid, _ in started])
        return [
            Ended(code, pid, Path(file).read_text(), Path(file).stat().st_mtime_ns)
            for code, (pid, file) in zip(codes, started, strict=True)
        ]

    def run(self, *calls, **limits):
        """Start all calls together and wait for them."""
        return self.wait(self.start(*calls, **limits))

    def kill(self, started, after):
        """Kill a started call after this many seconds; return its exit code and output."""
        time.sleep(after)
        os.kill(started[0][0], signal.SIGKILL)  # it has not been waited for, so the id cannot belong to another process
        (ended,) = self.wait(started)
        return ended

    def _ask(self, **question):
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def serve():
    """Start and wait for commands until stdin is closed."""
    import lightning_fabric  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import tqdm.auto  # noqa: F401
    import yaml  # noqa: F401

    from echo_ext import data, training  # noqa: F401
    from echo_ext.training import running

    data.load("digits")
    running.evaluation.write_figures = lambda *_: None  # figures take seconds and do not matter for these tests
    for line in sys.stdin:
        question = json.loads(line)
        if question.pop("do") == "start":
            answer = _start(**question)
        else:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in question["pids"]]
        print(json.dumps(answer), flush=True)


def _start(calls, errors, **limits):
    gate, opener = os.pipe()
    pids = []
    for words, file in zip(calls, errors, strict=True):
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            _become(words, file, gate, **limits)
        pids.append(pid)
    os.close(gate)
    os.close(opener)  # all of them continue now
    return pids


def _become(words, errors, gate, file_size=None, obeys_modes=False):
    code = 70
    try:
        for descriptor, file in ((0, os.devnull), (1, os.devnull), (2, errors)):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), descriptor)
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        if obeys_modes and os.getuid() == 0:
            _obey_modes()
        from echo_ext import cli

        os.read(gate, 1)
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = stop.code
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _obey_modes():
    """Make root obey the modes of files. Another user is no alternative: it could not import from root's folders."""
    version, override, search = 0x20080522, 1, 2
    header = (ctypes.c_uint32 * 2)(version, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable capabilities, two words for each
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    for index in range(2):
        sets[index] &= ~(1 << override | 1 << search)
    assert libc.capset(header, sets) == 0


if __name__ == "__main__":
    serve()
