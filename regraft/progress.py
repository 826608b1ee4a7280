"""Progress of long work, as log lines that a person reads and the flow parses."""

import logging
import re
import time
from dataclasses import dataclass, field

LINE = re.compile(r"progress (?P<percent>\d+)% (?P<text>.*)")


@dataclass
class Progress:
    """Log `progress 42% fine-tuning: 420 of 1000 images, 55 images/s, 11 s left` every few seconds.

    Args:
        log: The logger of the module that does the work.
        doing: What is being done, e.g. "fine-tuning".
        total: Units of work in all; 0 logs nothing.
        unit: Plural name of a unit, e.g. "images".
        every_s: Least time between two lines, in seconds.
    """

    log: logging.Logger
    doing: str
    total: int
    unit: str
    every_s: float = 3.0
    done: int = 0
    _started: float = field(default_factory=time.monotonic)
    _logged: float = field(default_factory=time.monotonic)

    def advance(self, units: int, note: str = "") -> None:
        """Count `units` more as done; `note` (e.g. "loss 0.31") ends the line if one is due."""
        self.done += units
        now = time.monotonic()
        if self.total and (now - self._logged >= self.every_s or self.done >= self.total):
            self._logged = now
            rate = self.done / max(now - self._started, 1e-9)
            left_s = (self.total - self.done) / rate
            self.log.info(
                "progress %d%% %s: %d of %d %s, %.0f %s/s, %.0f s left%s",
                100 * self.done // self.total, self.doing, self.done, self.total, self.unit, rate, self.unit, left_s,
                f", {note}" if note else "",
            )  # fmt: skip
