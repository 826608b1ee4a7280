"""Every strategy and `auto` on the same data, features and starting weights: test accuracy and time of fine-tuning.

python -m benchmarks.strategies folder:DIR csv:DIR ... [--strategies probe,lp_ft,...] [--epochs N] [--seeds 7,8]

For the numbers with few examples make a smaller source first: `python -m benchmarks.subsample`. The last column is the
test accuracy of `auto` minus that of the best fixed strategy, in points, mean over seeds.
"""

import argparse

from benchmarks.projects import temporary_project

FIXED = ("probe", "lp_ft", "full", "gradual", "lora")


def main() -> None:
    """Print a line for each source, seed and strategy, and a summary for each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--strategies", default=",".join((*FIXED, "auto")))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", default="7")
    options = parser.parse_args()
    print("source | seed | strategy | ships | test accuracy (95% interval) | fine-tuning, s", flush=True)
    for source in options.sources:
        name = source.rpartition("/")[2]
        behind = []
        for seed in options.seeds.split(","):
            accuracies = _compare(source, name, int(seed), options.strategies.split(","), options.epochs)
            fixed = [value for strategy, value in accuracies.items() if strategy != "auto"]
            if "auto" in accuracies and fixed:
                behind.append(100 * (accuracies["auto"] - max(fixed)))
        if behind:
            print(f"{name}: auto minus the best fixed strategy {sum(behind) / len(behind):+.2f} points", flush=True)


def _compare(source: str, name: str, seed: int, strategies: list[str], epochs: int | None) -> dict[str, float]:
    """Return the test accuracy by strategy; those that do not fit the backbone are left out."""
    accuracies = {}
    with temporary_project(source) as project:
        project.change("seed", seed)
        if epochs:
            project.change("finetune.epochs", epochs)
        is_text = source.startswith(("csv:", "table:"))
        for strategy in strategies:
            if strategy == "lora" and not is_text:
                continue
            project.change("finetune.strategy", strategy)
            project.run()
            metrics, seconds = project.report("metrics.json"), project.report("training_time.json")["stage_seconds"]
            accuracy = metrics["test"]["accuracy"]
            accuracies[strategy] = accuracy["value"]
            interval = f"{accuracy['value']:.4f} ({accuracy['low']:.4f} to {accuracy['high']:.4f})"
            print(f"{name} | {seed} | {strategy} | {metrics['shipped']} | {interval} | {seconds:.0f}", flush=True)
    return accuracies


if __name__ == "__main__":
    main()
