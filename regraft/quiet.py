"""TensorFlow prints lines while it starts, whatever its log level: how to know them and keep them from people."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

NOISE = re.compile(
    r"WARNING: All log messages before absl|[IWE]\d{4} \d\d:\d\d:\d\d"
    # Exported models have no fingerprint of TensorFlow's, which would be another each time.
    r"|Fingerprint not found\. Saved model|path_and_singleprint metric could not be logged"
)


@contextmanager
def without_noise() -> Iterator[None]:
    """Hold back standard error, C++'s included, and let all of it but the noise through when the block ends."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            sys.stderr.writelines(line for line in held if not NOISE.match(line))
