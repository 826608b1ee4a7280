"""Work that goes on in a thread beside a block of code."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(work: Callable[[], None], every_s: float, name: str) -> Iterator[None]:
    """Call `work` every so often from a thread while the block runs, and once more when it has ended, however it did.

    Args:
        work: What to do; it raises nothing.
        every_s: Seconds between two calls.
        name: Of the thread.
    """
    finished = threading.Event()

    def go() -> None:
        while not finished.wait(every_s):
            work()
        work()

    thread = threading.Thread(target=go, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
