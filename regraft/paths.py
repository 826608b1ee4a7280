"""Where a project keeps its files: the only place that spells these names."""

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Paths:
    """Every file and folder of the project at `root`, as absolute paths."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def graph(self) -> Path:
        return self.root / "dvc.yaml"

    @property
    def lock(self) -> Path:
        return self.root / "dvc.lock"

    # What stages hand on; each is an output in dvc.yaml.

    @property
    def raw(self) -> Path:
        return self.root / "data" / "raw"

    @property
    def prepared(self) -> Path:
        return self.root / "data" / "prepared"

    @property
    def slices(self) -> Path:
        """What the columns to slice by say of test examples: see `regraft.data.slice_columns`."""
        return self.root / "data" / "slices.csv"

    @property
    def backbones(self) -> Path:
        return self.root / "models" / "backbones"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def model(self) -> Path:
        return self.root / "models" / "model"

    @property
    def serving(self) -> Path:
        """The exported model that takes raw input (a TensorFlow SavedModel and its labels)."""
        return self.root / "models" / "serving"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def model_card(self) -> Path:
        """What the model is and does, in Markdown."""
        return self.reports / "model_card.md"

    @property
    def choice(self) -> Path:
        """Which backbone is used, and why."""
        return self.reports / "choice.json"

    # What may be deleted at any time, at the price of doing work again.

    @property
    def state(self) -> Path:
        """Fingerprints that planning refreshes, logs, the run lock, the feature cache."""
        return self.root / ".regraft"

    @property
    def inputs(self) -> Path:
        """Fingerprints of what lies outside params.yaml: each stage's code, the source's content."""
        return self.state / "inputs.json"

    @property
    def feature_cache(self) -> Path:
        return self.state / "features"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def scratch(self) -> Path:
        """Checkpoints and half-made outputs, one folder per stage fingerprint."""
        return self.root / ".scratch"

    def scratch_of(self, stage: str, fingerprint: str) -> Path:
        """Where one attempt after the other at the same work of `stage` leaves what the next goes on from."""
        return self.scratch / f"{stage}-{fingerprint[:16]}"
