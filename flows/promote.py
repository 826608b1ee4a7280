"""The task `promote`: register what the graph made, and move the alias `champion` if the gates in params.yaml hold."""

import subprocess
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.pools import Pools
from regraft.files import read_json, write_json
from regraft.fingerprint import hash_bytes, locked_hash, release_fingerprint
from regraft.paths import REPOSITORY, Paths
from regraft.registry.published import CODE_COMMIT, DATA_MD5
from regraft.registry.register import publish
from regraft.registry.tracking import note_registry, tracking_uri
from regraft.settings import load_settings


@task(name="promote", task_run_name="promote", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False)
def promote(root: str, flow_run_id: str, pools: Pools | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Publish the project's current model, here or from a worker: once for each fingerprint, however often called.

    Returns:
        The fields of `regraft.registry.register.Publication`, and what reports/metrics.json holds; None if stages had
        to make again what the remote had lost.
    """
    logger, paths = get_run_logger(), Paths(Path(root))
    tags = lineage(paths, flow_run_id)
    if pools is None:
        done = publish(paths, load_settings(paths.params), tags, release_fingerprint(paths))
        publication, metrics = done.as_json(), read_json(paths.reports / "metrics.json")
    else:
        result = pools.publish(tags, logger.info)
        if result is None:
            return None
        publication, metrics = result["publication"], result["metrics"]
        write_json(paths.reports / "promotion.json", publication)
    note_registry(paths, tracking_uri(paths, load_settings(paths.params)))
    said = "is champion" if publication["promoted"] else "was not promoted"
    logger.info("version %s %s: %s", publication["version"], said, "; ".join(publication["reasons"]))
    return publication, metrics


def lineage(paths: Paths, flow_run_id: str) -> dict[str, str]:
    """Return the tags that lead from a registered version back to what it was made of."""
    return {
        CODE_COMMIT: git_commit(REPOSITORY),
        "regraft.project_commit": git_commit(paths.root),
        "regraft.dvc_lock_sha256": hash_bytes(paths.lock.read_bytes()),
        DATA_MD5: locked_hash(paths, paths.prepared),
        "regraft.backbone_md5": locked_hash(paths, paths.backbones),
        "regraft.flow_run_id": flow_run_id,
    }


def git_commit(folder: Path) -> str:
    """Return the commit checked out in `folder`, with `-dirty` if tracked files differ from it, or "none"."""
    found = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() if found.returncode == 0 else "none"
