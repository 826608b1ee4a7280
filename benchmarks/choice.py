"""Choosing the backbone by evidence against always taking one: test accuracy lost to the best candidate, and the time.

python -m benchmarks.choice SOURCE ... [--strategy lp_ft] [--candidates NAME,...] [--target COLUMN] [--seed 7]

Every candidate is run through the whole pipeline; then the stage `choose` picks one without having seen any of it.
Candidates default to those it would find by itself: all that are at hand; images at the sizes it tries. Regret is the
best candidate's test accuracy (R2 of real values) minus that of the pick, in points; "usual" is the pick without
looking. "cost" is the time of choosing as a share of that of embedding and training with every candidate.
"""

import argparse
import shutil
import statistics

from benchmarks.projects import Project, regraft, temporary_project
from regraft.measures import LEADING, task_of


def main() -> None:
    """Print a line for each source and candidate, one for each source, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--strategy", default="lp_ft")
    parser.add_argument("--candidates", help="default: all that are at hand")
    parser.add_argument("--target", help="the column of answers, for all sources")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    named = options.candidates.split(",") if options.candidates else None
    regrets: dict[str, list[float]] = {"chosen": [], "usual": []}
    costs = []
    print("source | candidate | test measure | embedding and training, s", flush=True)
    for source in options.sources:
        with temporary_project(source, *(["--target", options.target] if options.target else [])) as project:
            project.change("seed", options.seed)
            project.change("finetune.strategy", options.strategy)
            found, cost = _compare(project, source.rpartition("/")[2], named)
            for pick, regret in found.items():
                regrets[pick].append(regret)
            costs.append(cost)
    means = ", ".join(f"{pick} {statistics.fmean(values):.2f}" for pick, values in regrets.items())
    print(f"mean regret over {len(options.sources)} sources, points: {means}; mean cost {statistics.fmean(costs):.2f}")


def _compare(project: Project, name: str, named: list[str] | None) -> tuple[dict[str, float], float]:
    """Return the regret of what is chosen and of the usual pick, in points, and what choosing cost."""
    project.change("backbone.name", "auto")
    if named:
        project.change("backbone.candidates", named)
    regraft("rank", "--root", str(project.root), "--json")  # prepares the data, fetches weights
    shutil.rmtree(project.root / ".regraft" / "features")
    _run(project)
    choice, choosing = project.report("choice.json"), project.report("choice_time.json")["stage_seconds"]
    chosen = choice["label"]
    accuracies, seconds = {}, 0.0
    for row in choice["ranked"]:
        shutil.rmtree(project.root / ".regraft" / "features")
        label = row["label"]
        project.change("backbone.name", row["name"])
        project.change("embed.image_size_px", row["image_size_px"] or "auto")
        spent, accuracies[label] = _run(project)
        seconds += spent
        print(f"{name} | {label} | {accuracies[label]:.4f} | {spent:.0f}", flush=True)
    best = max(accuracies.values())
    regret = {"chosen": 100 * (best - accuracies[chosen]), "usual": 100 * (best - accuracies[choice["usual"]])}
    print(
        f"{name}: chosen {chosen} {regret['chosen']:+.2f}, usual {choice['usual']} {regret['usual']:+.2f}", flush=True
    )
    return regret, choosing / seconds


def _run(project: Project) -> tuple[float, float]:
    """Run the project; return the seconds and the test measure."""
    seconds, _ = project.run()
    metrics = project.report("metrics.json")
    return seconds, metrics["test"][LEADING[task_of(metrics)]]["value"]


if __name__ == "__main__":
    main()
