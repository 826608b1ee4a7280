"""The flow `score`: a registered model answers a folder or a table; it says if the input drifted, or retrains then."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows.retrain import may_succeed_later, retrain
from regraft.errors import RegraftError, ResourceError
from regraft.paths import REPOSITORY, Paths
from regraft.settings import load_settings

RETRIES, RETRY_DELAY_S = 2, 10
DRIFT_EVENT = "regraft.drift"


@flow(name="score", flow_run_name="score {source}", log_prints=False)
def score(
    source: str,
    out: str,
    root: str = ".",
    model: str | None = None,
    *,
    column: str | None = None,
    retrain_on_drift: bool = False,
) -> dict[str, Any]:
    """Answer `source` with a registered model; what was answered before an interruption is kept.

    Drift emits the event `regraft.drift`, to which an automation of yours may react.

    Args:
        source: A folder of files, or a table; see `regraft.registry.scoring`.
        out: Folder for Parquet files, new or that of a run to go on with.
        root: The project's folder.
        model: `NAME`, `NAME@ALIAS` or `NAME/VERSION`; None: the project's champion.
        column: Of the table that holds the input; None: by its name.
        retrain_on_drift: Whether to run the flow `retrain` if something drifted. It does nothing while the project's
            data is as it was: drift is found in what came in, and a model learns from what was labelled.

    Returns:
        What `regraft score --json` prints, and with `retrain_on_drift` what `retrain` returned, as "retrained".

    Raises:
        RegraftError: If settings, model or input are at fault.
        ResourceError: If a server, disk or network gave out, time and again.
    """
    paths = Paths(Path(root).resolve())
    settings = load_settings(paths.params)
    run = answer.with_options(tags={settings.placement.pool or "cpu"})
    outcome = run(str(paths.root), model or settings.name, source, out, column)
    drifted = [row for row in outcome["drift"] or [] if row["drifted"]]
    _publish(outcome, out)
    if drifted:
        get_run_logger().warning("drifted: %s", ", ".join(row["what"] for row in drifted))
        resource = {
            "prefect.resource.id": f"regraft.model.{outcome['model']}",
            "prefect.resource.name": outcome["model"],
            "regraft.root": str(paths.root),
        }
        emit_event(DRIFT_EVENT, resource=resource, payload={"version": outcome["version"], "drift": drifted})
        if retrain_on_drift:
            outcome["retrained"] = retrain(str(paths.root))
    return outcome


@task(
    name="score",
    task_run_name="score",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_S,
    retry_condition_fn=may_succeed_later,
)
def answer(root: str, model: str, source: str, out: str, column: str | None) -> dict[str, Any]:
    """Run `regraft score` in a process of its own, so that TensorFlow and its memory end with it."""
    logger = get_run_logger()
    named = [] if column is None else ["--column", column]
    command = [sys.executable, "-P", "-m", "regraft.cli", "score", model, source, out, "--root", root, "--json", *named]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    lines: list[str] = []
    with (
        TemporaryFile("w+", encoding="utf-8") as printed,  # of many classes it is more than a pipe holds
        subprocess.Popen(
            command, cwd=root, env=environment, stdout=printed, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process,
    ):
        try:
            for line in process.stderr or ():
                lines.append(line.rstrip())
                logger.info(lines[-1])
            process.wait()
        finally:
            process.terminate()  # nothing to it that has ended
        printed.seek(0)
        if process.returncode == 0:
            return json.load(printed)
    message = f"scoring {source} failed:\n" + "\n".join(lines[-5:])
    passing = process.returncode == ResourceError.exit_code
    raise (ResourceError if passing else RegraftError)(message)


def _publish(outcome: dict[str, Any], out: str) -> None:
    """Show what was scored, and what drifted, beside the run in Prefect."""
    rows = [
        f"| {row['what']} | {row['effect']} {row['size']:+.3f} | {row['p']:.2g} | {_verdict(row)} |"
        for row in outcome["drift"] or []
    ]
    unknown = [f"Drift is not known: {outcome['drift_unknown']}"] if outcome["drift"] is None else []
    create_markdown_artifact(
        key="scores",
        description=f"Answers of {outcome['model']} version {outcome['version']}",
        markdown="\n".join(
            [
                f"{outcome['rows']} rows, {outcome['failed']} without an answer, in `{out}`.",
                "",
                *unknown,
                *(["| what | effect | p | verdict |", "|---|---|---|---|", *rows] if rows else []),
            ]
        ),
    )


def _verdict(row: dict[str, Any]) -> str:
    return "drifted" if row["drifted"] else "no drift"
