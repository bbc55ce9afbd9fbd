"""Runs in processes of their own, to be killed at a step."""

import time

__all__ = ["wait_for"]


def wait_for(folder, step, process):
    """Until metrics.csv holds the step."""
    for _ in range(6000):
        file = folder / "metrics.csv"
        if file.exists() and any(line.startswith(f"{step},") for line in file.read_text().splitlines()):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"step {step} was never reached")
