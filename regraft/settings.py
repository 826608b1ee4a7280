"""What params.yaml may say: strict, typed, and checked once, with every problem reported together."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import regex
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from regraft.errors import SettingsError


def _as_float(value: Any) -> Any:
    """Let a whole number stand for a float (`1` for `1.0`); strict mode would refuse it, YAML users write it."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Number = Annotated[float, BeforeValidator(_as_float)]
# By task: classification (also macro averages), multilabel, regression; see regraft/measures.py.
Metric = Literal[
    "accuracy", "precision", "recall", "f1",
    "micro_f1", "macro_f1", "micro_precision", "micro_recall", "macro_precision", "macro_recall", "subset_accuracy",
    "hamming_loss",
    "r2", "pearson", "spearman", "rmse", "mae", "mse",
]  # fmt: skip
AUTO = "auto"
PROJECT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# What changes nothing by strategy: `probe` trains no network, `gradual` and `lora` have rates of their own by layer,
# `contrastive` learns from whole batches of pairs, whose labels are not classes.
IDLE_OPTIONS = {
    "probe": ("layer_decay", "l2_sp", "label_smoothing", "mixup", "soup", "budget_s", "accumulate"),
    "gradual": ("layer_decay",),
    "lora": ("layer_decay",),
    "contrastive": ("label_smoothing", "mixup", "accumulate"),
}
UNBOUNDED_METRICS = ("rmse", "mae", "mse")


class Section(BaseModel):
    """A part of params.yaml: unknown keys and values of another type are errors; instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DownloadSettings(Section):
    """Where the data comes from."""

    source: str | Annotated[list[str], Field(min_length=1)] = "package:mnist5k"

    @property
    def sources(self) -> list[str]:
        """The sources whose examples are put together: one, or several in their order."""
        return [self.source] if isinstance(self.source, str) else self.source


class PreprocessSettings(Section):
    """How raw data becomes labelled, split, checked examples."""

    kind: Literal["auto", "image", "text", "audio"] = "auto"
    task: Literal["auto", "classification", "multilabel", "regression"] = "auto"
    text_column: str | Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    target_column: str | Annotated[list[str], Field(min_length=1)] | None = None
    group_column: str | None = None
    group_pattern: str | None = None
    time_column: str | None = None
    slice_columns: list[str] = []
    validation_fraction: Annotated[Number, Field(gt=0.0, lt=0.5)] = 0.15
    test_fraction: Annotated[Number, Field(gt=0.0, lt=0.5)] = 0.2
    min_examples_per_class: Annotated[int, Field(ge=3)] = 3
    max_rejected_fraction: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.02
    max_leak_fraction: Annotated[Number, Field(ge=0.0, lt=1.0)] | None = None
    max_conflict_fraction: Annotated[Number, Field(ge=0.0, lt=1.0)] | None = None
    leaks: Literal["report", "drop", "refuse"] = "report"

    @field_validator("group_pattern")
    @classmethod
    def _pattern_has_one_group(cls, pattern: str | None) -> str | None:
        try:
            groups = regex.compile(pattern).groups if pattern is not None else 1
        except (regex.error, OverflowError, RecursionError) as error:
            raise ValueError(f"must be a regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"must have one pair of parentheses, around the group; it has {groups}")
        return pattern

    @field_validator("slice_columns")
    @classmethod
    def _columns_are_named_once(cls, columns: list[str]) -> list[str]:
        if len(set(columns)) < len(columns):
            raise ValueError("must name each column once")
        return columns

    @model_validator(mode="after")
    def _groups_come_from_one_place(self) -> "PreprocessSettings":
        if self.group_column is not None and self.group_pattern is not None:
            raise ValueError("group_column and group_pattern cannot both be set")
        return self


class PretrainSettings(Section):
    """How a backbone is pretrained here: see `BackboneSettings.mode`."""

    source: str | None = None
    method: Literal["auto", "supervised", "rotation", "masked", "causal"] = "auto"
    start: Literal["nothing", "weights"] = "nothing"
    epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    batch_size: Annotated[int, Field(ge=2)] = 32
    learning_rate: Literal["auto"] | Annotated[Number, Field(gt=0.0, le=1.0)] = "auto"
    image_size_px: Literal["auto"] | Annotated[int, Field(ge=32, le=1024)] = "auto"
    max_tokens: Annotated[int, Field(ge=8, le=1024)] = 128
    vocabulary_size: Annotated[int, Field(ge=300, le=200_000)] = 8192
    progressive: bool = True
    stop: Literal["never", "transfer"] = "never"
    budget_s: Annotated[Number, Field(gt=0.0, allow_inf_nan=False)] | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class BackboneSettings(Section):
    """Which network the head is grafted on, and what it has learnt before.

    With the name `auto` it is the one of `candidates` that suits the data best.
    """

    name: str = "efficientnet_lite0_imagenet"
    candidates: Annotated[list[str], Field(min_length=1)] | None = None
    max_parameters: Annotated[int, Field(ge=1)] | None = None
    mode: Literal["fetch", "scratch", "pretrain"] = "fetch"
    pretrain: PretrainSettings = PretrainSettings()

    @property
    def named(self) -> list[str]:
        """All backbones that the settings speak of."""
        return [self.name] if self.name != AUTO else self.candidates or []

    @property
    def is_judged_by_target(self) -> bool:
        """Whether the project's own examples say when pretraining stops."""
        return self.mode == "pretrain" and self.pretrain.stop == "transfer"

    @model_validator(mode="after")
    def _modes_have_what_they_need(self) -> "BackboneSettings":
        if self.mode == "pretrain" and self.pretrain.source is None:
            raise ValueError(
                "mode pretrain learns from pretrain.source, which is not set: folder:DIR, text:FILE_OR_DIR, csv:FILE"
            )
        if self.mode != "fetch" and self.name == AUTO:
            raise ValueError(f"mode {self.mode} needs the name of a network; auto chooses among fetched ones")
        return self


class EmbedSettings(Section):
    """How examples enter the backbone."""

    image_size_px: Literal["auto"] | Annotated[int, Field(ge=32, le=1024)] = "auto"
    audio_seconds: Literal["auto"] | Annotated[Number, Field(ge=0.1, le=60.0)] = "auto"
    max_tokens: Annotated[int, Field(ge=8, le=512)] = 128
    batch_size: Annotated[int, Field(ge=1)] = 32


class FinetuneSettings(Section):
    """How the grafted model is trained."""

    strategy: Literal["probe", "lp_ft", "full", "gradual", "lora", "contrastive", "auto"] = "lp_ft"
    epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    learning_rate: Literal["auto"] | Annotated[Number, Field(gt=0.0, le=1.0)] = "auto"
    patience_epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    augment: bool = True
    layer_decay: Annotated[Number, Field(gt=0.0, le=1.0)] = 1.0
    l2_sp: Annotated[Number, Field(ge=0.0, le=100.0)] = 0.0
    label_smoothing: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.0
    mixup: Annotated[Number, Field(ge=0.0, le=10.0)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    soup: bool = False
    budget_s: Annotated[Number, Field(gt=0.0, allow_inf_nan=False)] | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @model_validator(mode="after")
    def _no_option_is_idle(self) -> "FinetuneSettings":
        """A setting that would do nothing is a mistake of whoever set it, and is told before anything runs."""
        for option in IDLE_OPTIONS.get(self.strategy, ()):
            value, usual = getattr(self, option), type(self).model_fields[option].default
            if value != usual:
                shown = "null" if usual is None else str(usual).lower()
                raise ValueError(
                    f"{option} has no meaning with strategy {self.strategy}: set it to {shown} (got {value})"
                )
        return self


class EvaluateSettings(Section):
    """How the test number and its interval are computed, and what the model's answers promise."""

    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000
    interval: Annotated[Number, Field(gt=0.5, lt=1.0)] = 0.95
    coverage: Annotated[Number, Field(ge=0.5, lt=1.0)] = 0.9
    risk: Annotated[Number, Field(gt=0.0, lt=1.0)] | None = None


class PromoteSettings(Section):
    """What a new model must show before the alias `champion` moves to it."""

    metric: Literal["auto"] | Metric = "auto"
    minimum: Literal["auto"] | Annotated[Number, Field(ge=0.0)] = "auto"
    tolerance: Annotated[Number, Field(ge=0.0)] = 0.0
    max_ece: Annotated[Number, Field(gt=0.0, le=1.0)] | None = None
    leakage: Literal["report", "clean"] = "report"
    min_slice: Annotated[Number, Field(ge=0.0)] | None = None
    max_latency_ms: Annotated[Number, Field(gt=0.0)] | None = None
    max_model_mb: Annotated[Number, Field(gt=0.0)] | None = None

    @property
    def off(self) -> set[str]:
        """Names of conditions that ask nothing; older decisions knew none of them, and stay valid without."""
        conditions = {"max_ece", "leakage", "min_slice", "max_latency_ms", "max_model_mb"}
        return {name for name in conditions if getattr(self, name) in (None, "report")}

    @model_validator(mode="after")
    def _shares_stay_below_one(self) -> "PromoteSettings":
        """No metric but an error in the target's own unit can exceed 1."""
        if self.metric not in UNBOUNDED_METRICS:
            if self.minimum != "auto" and self.minimum > 1.0:
                raise ValueError(f"minimum can be at most 1 for the metric {self.metric}, got {self.minimum:g}")
            if self.tolerance >= 1.0:
                raise ValueError(f"tolerance must be less than 1 for the metric {self.metric}, got {self.tolerance:g}")
        return self


class PlacementSettings(Section):
    """Where stages run."""

    mode: Literal["local", "pools"] = "local"
    pool: str | None = None
    gpus: Annotated[int, Field(ge=1)] = 1
    checkpoints_s: Annotated[Number, Field(ge=1.0, allow_inf_nan=False)] | None = None


class TrackingSettings(Section):
    """Which MLflow server remembers runs and models."""

    uri: str | None = None


def _project_name(name: str) -> str:
    if not PROJECT_NAME.fullmatch(name):
        raise ValueError("must be up to 64 letters, digits, `_`, `-` and `.`, beginning with a letter or digit: pets-2")
    return name


class Settings(Section):
    """The whole of params.yaml."""

    name: Annotated[str, AfterValidator(_project_name)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 7
    download: DownloadSettings = DownloadSettings()
    preprocess: PreprocessSettings = PreprocessSettings()
    backbone: BackboneSettings = BackboneSettings()
    embed: EmbedSettings = EmbedSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    promote: PromoteSettings = PromoteSettings()
    placement: PlacementSettings = PlacementSettings()
    tracking: TrackingSettings = TrackingSettings()


def load_settings(path: Path) -> Settings:
    """Read and check params.yaml.

    Raises:
        SettingsError: If the file is missing, is not YAML, or has invalid settings; the message lists all of them.
    """
    try:
        text = path.read_text("utf-8")
        values = YAML(typ="safe", pure=True).load(text)
    except FileNotFoundError:
        raise SettingsError(
            f"{path} does not exist. Run this in a project's folder, name one with --root DIR, "
            "or make one with `regraft init DIR --source ... --name ...`."
        ) from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from None
    settings = check_settings(values, path.name)
    try:
        YAML(typ="safe").load(text)  # with the parser that DVC reads this file with, which knows less of YAML
    except YAMLError as error:
        raise SettingsError(
            f"{path} is YAML that DVC cannot read: {error}\nInside [...], put a text with a colon in quotes: "
            "['folder:A', 'folder:B']."
        ) from None
    return settings


def check_settings(values: Any, where: str) -> Settings:
    """Return `values`, as read from YAML, as settings.

    Every section must be there, if only as `finetune: {}`, because the graph names it; a setting in it may be left out.

    Args:
        values: The content of params.yaml.
        where: What to call it in the message.

    Raises:
        SettingsError: If anything in it is not allowed; the message lists all of it.
    """
    if not isinstance(values, dict):
        got = "nothing" if values is None else type(values).__name__
        raise SettingsError(f"{where} must hold settings as `key: value` lines, got {got}.")
    lines = [f"{name}: is required and missing" for name in Settings.model_fields if name not in values]
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        lines = [*lines, *(line for line in _describe(error) if line not in lines)]
    if lines:
        raise SettingsError(f"{where} has {len(lines)} invalid setting(s):\n  " + "\n  ".join(lines))
    return settings


def _describe(error: ValidationError) -> list[str]:
    """Return a line for each setting at fault: where, what is wrong, what was received, a guess at what was meant."""
    faults: dict[str, list[Any]] = {}
    for problem in error.errors(include_url=False):
        # A setting of several types has a fault for each, told apart by a last part that names the type.
        keys = [
            str(part)
            for part in problem["loc"]
            if not re.match(r"(int|float|str|list|literal|constrained|function-\w+)\b", str(part))
        ]
        faults.setdefault(".".join(keys), []).append(problem)
    lines = []
    for where, problems in faults.items():
        kinds = {problem["type"] for problem in problems}
        if "missing" in kinds:
            what = "is required and missing"
        elif "extra_forbidden" in kinds:
            *parents, key = where.split(".")
            known = _keys_beside(parents)
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            what = "there is no such setting; " + (
                f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"
            )
        elif "model_type" in kinds:
            what = f"must hold settings as `key: value` lines (got {problems[0]['input']!r})"
        else:
            messages = [problem["msg"].removeprefix("Value error, ") for problem in problems]
            also = [message[0].lower() + message[1:] for message in messages[1:]]
            what = ", or ".join([messages[0], *also])
            is_of_section = "value_error" in kinds and isinstance(problems[0]["input"], dict)
            if not is_of_section:  # whose message names the setting; the whole section would bury it
                what += f" (got {problems[0]['input']!r})"
        lines.append(f"{where}: {what}")
    return lines


def _keys_beside(parents: list[str]) -> list[str]:
    """Return the names allowed in the section that `parents` leads to."""
    model: Any = Settings
    for part in parents:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
