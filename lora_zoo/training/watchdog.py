"""A thread that ends the process in time after a signal, whatever the main thread is doing.

Python calls its handlers between two instructions of the main thread; one long operation holds them up. The
interpreter also writes each signal's number to a pipe at once, and that is what this thread reads.
"""

import os
import select
import signal
import threading
import time

WITHIN = 9.5  # seconds, of the ten in which a run promises to leave
OFF = b"\0"  # no signal has this number
_DOGS: "list[Watchdog]" = []


class Watchdog:
    """Watches the process from `start` to `stop`; the process ends `WITHIN` seconds after a signal."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self.numbers = numbers
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = -1

    def start(self) -> None:
        """Begin to watch; to be called in the main thread."""
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        _DOGS.append(self)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no more; to be called in the main thread."""
        if self in _DOGS:
            _DOGS.remove(self)
            signal.set_wakeup_fd(self._before)
            os.write(self._write, OFF)  # the last use of the pipe here: the thread closes it

    def _watch(self) -> None:
        deadline, number = None, 0
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                os._exit(128 + number)
            if select.select([self._read], [], [], left)[0]:
                read = os.read(self._read, 64)
                if OFF in read:
                    os.close(self._read)
                    os.close(self._write)
                    return
                heard = [byte for byte in read if byte in self.numbers]
                if heard and deadline is None:
                    deadline, number = time.monotonic() + WITHIN, heard[0]


def call_off() -> None:
    """End every watch: the process lives on after a stop."""
    for dog in list(_DOGS):
        dog.stop()


def _in_child() -> None:
    if _DOGS:  # a signal of the child's is none of the parent's
        signal.set_wakeup_fd(-1)
        _DOGS.clear()


os.register_at_fork(after_in_child=_in_child)
