"""Processes of their own: awaited as long as they work, whatever else the machine does, and killed at a step."""

import subprocess
import tempfile
import time
from pathlib import Path

__all__ = ["finished", "run_program", "wait_for"]

_IDLE = 120  # seconds without any processor time, after which a process is taken to hang


def run_program(words, *, cwd=None, env=None):
    """What a program did: returncode, stdout, stderr. Killed where it and its children stop working."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with subprocess.Popen([*map(str, words)], stdout=out, stderr=err, text=True, cwd=cwd, env=env) as process:
            finished(process)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(process.args, process.returncode, out.read(), err.read())


def finished(process):
    """Wait for a process to end, as long as its processor time grows; its exit status.

    A limit in seconds would fail on a busy machine, and let a process that hangs take as long on an idle one.
    """
    works = _works(process)
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if not next(works):
                process.kill()
                raise AssertionError(f"{process.args} did nothing for {_IDLE} seconds") from None


def _works(process):
    """At every call, whether its processor time has grown within the last seconds."""
    spent, since = -1, time.monotonic()
    while True:
        now = _processor_time(process.pid)
        if now > spent:
            spent, since = now, time.monotonic()
        yield time.monotonic() - since < _IDLE


def _processor_time(pid):
    """Of a process and its children, in clock ticks; it only grows while some of them works."""
    total, pending = 0, [pid]
    while pending:
        one = pending.pop()
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))  # own, and of children that have ended
            for task in Path(f"/proc/{one}/task").iterdir():
                pending += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return total


def wait_for(folder, step, process):
    """Until metrics.csv holds the step."""
    file, works = folder / "metrics.csv", _works(process)
    while not (file.exists() and any(line.startswith(f"{step},") for line in file.read_text().splitlines())):
        assert process.poll() is None, process.communicate()[1]
        assert next(works), f"step {step} was never reached"
        time.sleep(0.02)
