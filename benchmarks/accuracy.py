"""Test accuracy and time of one `regraft run`, from raw data to champion, beside its own probe and the majority class.

python -m benchmarks.accuracy package:mnist5k folder:DIR csv:DIR ...
"""

import sys

from benchmarks.projects import temporary_project


def main(sources: list[str]) -> None:
    """Print a line for each source."""
    print("source | accuracy (95% interval) | probe | majority | shipped | minutes")
    for source in sources:
        with temporary_project(source) as project:
            seconds, outcome = project.run()
            metrics = project.report("metrics.json")
            accuracy = metrics["test"]["accuracy"]
            columns = [
                source.rpartition("/")[2],
                f"{accuracy['value']:.4f} ({accuracy['low']:.4f} to {accuracy['high']:.4f})",
                f"{metrics['probe']['test']['accuracy']['value']:.4f}",
                f"{metrics['majority']['test']['accuracy']['value']:.4f}",
                metrics["shipped"],
                f"{seconds / 60:.2f}",
            ]
            print(" | ".join(columns), flush=True)
            assert outcome["publication"]["promoted"], outcome


if __name__ == "__main__":
    main(sys.argv[1:] or ["package:mnist5k"])
