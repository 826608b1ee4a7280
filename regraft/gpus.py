"""Which GPUs a stage may use: each is leased to one at a time, by a lock that the kernel drops with its holder."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from regraft.errors import ResourceError, SettingsError
from regraft.locking import exclusive

VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/gpus")  # one folder a GPU, there if NVIDIA's driver is loaded
LOCKS = Path("/dev/shm")  # noqa: S108  (the same for all workers of this machine, whatever their TMPDIR)
POLL_S = 1.0


def present() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: ["0", "1"]; none without a driver.

    If that variable is set, it says which; what it says is not compared with the machine.
    """
    said = os.environ.get(VISIBLE)
    if said is not None:
        names = [name.strip() for name in said.split(",")]
        return [name for name in names if name and not name.startswith("-")]  # -1 is CUDA's word for none
    return [str(number) for number in range(len(list(DRIVER.iterdir())) if DRIVER.is_dir() else 0)]


@contextmanager
def leased(count: int, on_line: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Hold `count` GPUs for the length of the block; yield the environment that shows them, and no others, to a stage.

    On a machine without GPUs nothing is held and {} is yielded. A stage that wants none (`count` 0) sees none, so that
    it takes no memory of those that others hold. Leases are the user's, for all projects and workers of this machine.

    Args:
        count: How many.
        on_line: Is told if the block has to wait.

    Raises:
        SettingsError: If the machine has some, but fewer than `count`.
    """
    names = present()
    if not names:
        yield {}
        return
    if count > len(names):
        raise SettingsError(
            f"placement.gpus is {count}, but this machine shows {len(names)} GPU(s) ({', '.join(names)}); "
            f"lower it in params.yaml, or correct {VISIBLE}."
        )
    with ExitStack() as held:
        taken: list[str] = []
        has_waited = False
        while len(taken) < count:
            taken += _take_free([name for name in names if name not in taken], count - len(taken), held)
            if len(taken) == count:
                break
            # Two stages that each hold a part of what they want would wait for each other for ever.
            held.close()
            taken.clear()
            if not has_waited:
                on_line(f"waiting for {count} free GPU(s): all of {', '.join(names)} are leased")
                has_waited = True
            time.sleep(POLL_S)
        yield {VISIBLE: ",".join(taken) if taken else "-1"}


def _take_free(names: list[str], count: int, held: ExitStack) -> list[str]:
    """Lock up to `count` of the GPUs that nobody holds, and return which."""
    folder = LOCKS / f"regraft-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    taken: list[str] = []
    for name in names:
        if len(taken) == count:
            break
        try:
            held.enter_context(exclusive(folder / f"{name.replace('/', '-')}.lock", folder))
        except ResourceError:
            continue  # another stage has it
        taken.append(name)
    return taken
