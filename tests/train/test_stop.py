"""Signals are noted, then given back."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from nanochat.train.stop import StopSignals


@pytest.mark.req("EC-5", "FR-020")
def test_the_first_signal_is_noted() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.req("EC-5")
def test_a_second_interrupt_ends_the_process_at_once() -> None:
    code = (
        "import os, signal, time; from nanochat.train.stop import StopSignals\n"
        "with StopSignals() as s:\n"
        "    os.kill(os.getpid(), signal.SIGINT); print(s.received.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60); print('still here')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (130, "SIGINT\n")


def test_a_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside: list[object] = []

    def work() -> None:
        with StopSignals() as signals:
            inside.extend([signal.getsignal(signal.SIGTERM), signals.received])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before, None]
