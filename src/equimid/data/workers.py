"""What every process of a data loader does first."""

import signal

__all__ = ["leave_signals_to_the_main_process"]


def leave_signals_to_the_main_process(worker: int) -> None:
    """For loader workers: Ctrl-C reaches the whole process group, and they must live until the step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
