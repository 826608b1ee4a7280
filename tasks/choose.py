"""Choose the backbone: the one that is named, or, for `auto`, the one that suits the prepared data best."""

import logging
import os
import time
from pathlib import Path
from typing import Any

from regraft.files import read_json, replace_directory, write_json
from regraft.paths import Paths
from regraft.pretraining.sample import ABOUT, sample_folder
from regraft.settings import AUTO, BackboneSettings, EmbedSettings

log = logging.getLogger(__name__)

FINALISTS, SHORT_RUNS = 3, 2


def run(backbone: BackboneSettings, embed: EmbedSettings, seed: int, paths: Paths) -> None:
    """Write reports/choice.json: the backbone to use, the side of its images if that was chosen too, and why.

    And choice_time.json: how long it took here. And data/sample/: training examples that judge pretraining, if so set.

    With a name in the settings that is all there is to it, if that backbone takes such data: it would be fetched, or
    pretrained, in vain. With `auto`, candidates are ranked by the held-out loss of a
    probe on a sample of training and validation data; the best three, and the one that would be taken without looking,
    are probed on more; the best two make a short run of fine-tuning each, and the better one is chosen: successive
    halving (Jamieson & Talwalkar, 2016, arXiv:1502.07943). Test data is never looked at.

    Raises:
        BackboneError: If the backbone that is named takes another kind of data, or no candidate takes this kind within
            the budget.
        ResourceError: If the weights of a candidate could not be downloaded now.
    """
    started = time.monotonic()
    if backbone.name == AUTO:
        write_json(paths.choice, _by_evidence(backbone, embed, seed, paths))
    else:
        _require_kind(backbone.name, paths)
        write_json(paths.choice, {"name": backbone.name, "image_size_px": None, "by": "settings"})
    if backbone.is_judged_by_target:
        from regraft.ranking.sample import write_sample

        write_sample(paths, embed)
    else:
        with replace_directory(sample_folder(paths)) as folder:  # the same whatever the data
            write_json(folder / ABOUT, {})
    write_json(paths.reports / "choice_time.json", {"stage_seconds": time.monotonic() - started})


def _require_kind(name: str, paths: Paths) -> None:
    from regraft.backbones import catalogue

    if entry := catalogue.known().get(name):  # of another preset that is seen once it has been loaded
        catalogue.require_kind(name, entry.kind, read_json(paths.reports / "data.json")["kind"])


def _by_evidence(backbone: BackboneSettings, embed: EmbedSettings, seed: int, paths: Paths) -> dict[str, Any]:
    """Return the content of choice.json."""
    from regraft.ranking.contest import FIRST_ROUND, SECOND_ROUND, Contest

    contest = Contest(
        backbone, embed, seed, paths, scratch=Path(os.environ.get("REGRAFT_SCRATCH", paths.scratch / "choose"))
    )
    first = contest.rank(contest.candidates, FIRST_ROUND)
    finalists = [row.candidate for row in first[:FINALISTS]]
    if contest.usual not in finalists:
        finalists.append(contest.usual)
    second = contest.rank(finalists, SECOND_ROUND) if len(finalists) > 1 else first
    contenders = second[:SHORT_RUNS] if len(second) > 1 else []
    losses = {row.candidate: contest.short_run(row, SECOND_ROUND) for row in contenders}
    finished = {candidate: loss for candidate, loss in losses.items() if loss is not None}
    winner = min(finished, key=lambda candidate: finished[candidate]) if finished else second[0].candidate
    why = contest.why(winner, second, losses)
    log.info("%s", why)
    return {
        "label": winner.label,
        "name": winner.name,
        "image_size_px": winner.image_size_px,
        "by": "evidence",
        "why": why,
        "usual": contest.usual.label,
        "loss": contest.objective.loss_name,
        "measure": contest.objective.measure_name,
        "ranked": [row.facts() for row in first],
        "finalists": [{**row.facts(), "short_run_loss": losses.get(row.candidate)} for row in second],
    }
