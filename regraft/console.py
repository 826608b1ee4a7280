"""A run as a person sees it: the flow's messages line by line, progress in place, no tracebacks."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn, cast

from rich.console import Console
from rich.text import Text

from regraft import progress
from regraft.errors import TERMINATED, ResourceError
from regraft.state import server


def run_flow(root: Path, force: tuple[str, ...], *, debug: bool = False) -> dict[str, Any]:
    """Run the flow `retrain` in this process and return its result; see `flows.retrain.retrain`."""
    if not os.environ.get("PREFECT_API_URL") and (address := server("prefect")):
        os.environ["PREFECT_API_URL"] = address
    # Without a server Prefect starts its own; on a busy machine that takes longer than the 20 s it allows itself.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
    # It would report to its makers.
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    if not debug:
        # Prefect prints tracebacks of failed runs to its console handler; they still reach the server.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
        # Nor each message that does not reach a server which is gone: the run says that once, at its end.
        logging.raiseExceptions = False
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with console.status("starting Prefect", spinner="dots") as status:
        import httpx
        from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
        from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

        from flows.refusals import explained, is_refusal
        from flows.retrain import retrain

        _start_prefect()
        # A server of yours may be restarting. One that Prefect started for this run does not come back, but says 503
        # when runs of other projects, which share its SQLite file, write at the same moment: a quarter of a minute.
        patience = {} if PREFECT_API_URL.value() else {PREFECT_CLIENT_MAX_RETRIES: 3}
        handler = _RunHandler(console, status)
        loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs")]
        if not debug:
            for logger in loggers:
                logger.addHandler(handler)
        signal.signal(signal.SIGTERM, _stop)
        try:
            with temporary_settings(patience):
                return retrain(root=str(root), force=force)
        except (httpx.HTTPError, ConcurrencySlotAcquisitionError) as error:  # the latter: busy, its tables locked
            if _was_told_to_stop(error):  # and so was Prefect's own server, if the signal went to all processes
                raise SystemExit(TERMINATED) from error
            if is_refusal(error):
                raise explained(cast(httpx.HTTPError, error), PREFECT_API_URL.value(), "") from error
            raise ResourceError(
                f"the Prefect server stopped answering: {error or type(error).__name__}. "
                "Stages that are done are recorded; run again when it is back."
            ) from error
        finally:
            for logger in loggers:
                logger.removeHandler(handler)


def _stop(_number: int, _frame: Any) -> NoReturn:
    """End this process with its clean-up: locks are freed, Prefect's own server ends, and the kernel ends the stage."""
    raise SystemExit(TERMINATED)


def _was_told_to_stop(error: BaseException | None) -> bool:
    """Return whether `error` came up while Prefect, which takes SIGTERM over for the time of a flow, was stopping."""
    from prefect.exceptions import TerminationSignal

    while error is not None and not isinstance(error, TerminationSignal):
        error = error.__cause__ or error.__context__
    return error is not None


def _start_prefect() -> None:
    """Check that the Prefect server named in the settings answers; without one, let Prefect start its own for the run.

    Raises:
        ResourceError: If it does not.
    """
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL

    address = PREFECT_API_URL.value()
    # The server that is started inherits the mask: Ctrl-C must end the stage, while the server lives on to hear of it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except RuntimeError as error:
        raise ResourceError(
            f"Prefect could not start its own server: {error} Run again, or look at `--debug`."
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if problem is not None:
        raise ResourceError(
            f"the Prefect server at {address or 'its own address'} does not answer ({problem}). "
            "Start it (`regraft up` starts one), or unset PREFECT_API_URL (after `regraft down`) to run without one."
        )


class _RunHandler(logging.Handler):
    """Prints a run's messages without tracebacks; progress replaces the line before it where the terminal can."""

    def __init__(self, console: Console, status: Any) -> None:
        super().__init__(logging.INFO)
        self.console = console
        self.status = status
        self.failed = ""

    def emit(self, record: logging.LogRecord) -> None:
        stage = getattr(record, "task_run_name", None) or "retrain"
        message = record.getMessage()
        if record.levelno >= logging.ERROR and "Retry" in message:
            self.failed = ""
            self.console.print(Text(f"{stage:<10} ", style="cyan") + Text("failed, and will be tried again"))
        if record.exc_info or record.levelno >= logging.ERROR or message.startswith("Finished in state"):
            return  # the command prints the error itself, once
        if message.startswith("error: "):
            self.failed = stage
        if stage == self.failed:
            return
        if sys.stderr.isatty() and progress.LINE.match(message):
            self.status.update(Text(f"{stage:<10} {message.removeprefix('progress ')}"))
        else:
            self.console.print(Text(f"{stage:<10} ", style="cyan") + Text(message))
