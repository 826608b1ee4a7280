"""The report: what the files in reports/ say, on one page that is understood in half a minute and opens offline."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from regraft.backbones.card import Card
from regraft.data.overlaps import known_overlap
from regraft.data.records import SPLITS
from regraft.evaluation.metrics import most_frequent_confusions
from regraft.evaluation.plots import (
    DARK,
    LIGHT,
    Mistake,
    Theme,
    classes_drawn,
    confusion_figure,
    curves_figure,
    f1_figure,
    mistakes_figure,
    residuals_figure,
    scatter_figure,
    thumbnail,
    to_jpeg,
)
from regraft.evaluation.report_trust import trust_facts, trust_figures
from regraft.measures import HEADLINES, LEADING, VALIDATION, task_of, words
from regraft.settings import EvaluateSettings

_TEMPLATE, _CARD_TEMPLATE = "report.html.j2", "model_card.md.j2"
_CARD_LABELS = 100
_MARKS = re.compile(r"[\\`*_{}\[\]<>#|~]")  # of Markdown and of HTML in it
_TABLE_CLASSES = 12
_CONFUSIONS = 3
_REJECTS = 20
_GROUPS = 20
PAIRS_SHOWN = 6
_SMALL_IMAGE_PX = 64
_SHORT_TEXT = 240
# Metrics that are no shares.
_NUMBERS = ("r2", "pearson", "spearman", "rmse", "mae", "mse")
_MEANINGS = {"mae": "mean absolute error, in the target's own unit", "spearman": "Spearman's rank correlation"}
_TAKEN = {
    "image": "the bytes of an image file (JPEG, PNG, GIF or BMP)",
    "text": "a string",
    "audio": "the bytes of a WAV file",
}
_GIVEN = {
    "classification": "`label`, `probability` and `probabilities`",
    "multilabel": "`labels` (those with a probability of 0.5 or more) and `probabilities`",
    "regression": "`value`, or a column for each target",
}
_NOUNS = {"image": "image", "text": "text", "audio": "recording"}


@dataclass(frozen=True)
class Shown:
    """An example for people to look at; `content` is an encoded image (of a recording: its picture), or a text."""

    name: str
    split: str
    label: str
    content: bytes | str


Pairs = Sequence[tuple[Shown, Shown]]


@dataclass(frozen=True)
class Facts:
    """What a report is made of: the contents of files that the stages write.

    Attributes:
        name: The model's name in the registry.
        metrics: reports/metrics.json.
        speed: reports/speed.json.
        training: reports/training.json.
        choice: reports/choice.json.
        data: reports/data.json.
        download: reports/download.json.
        backbone: The card of the backbone.
        features: features/features.json.
        mistakes: The mistakes the model was surest of.
        seed: Of the run.
        evaluate: How the intervals were computed.
        answers: True values and predicted ones, each (N, K), of a regression; None for other tasks.
        sheet: reports/data.png; None for none.
        copies: The first copies across splits.
        conflicts: The first copies with different labels.
    """

    name: str
    metrics: Mapping[str, Any]
    speed: Mapping[str, Any]
    training: Mapping[str, Any]
    choice: Mapping[str, Any]
    data: Mapping[str, Any]
    download: Mapping[str, Any]
    backbone: Card
    features: Mapping[str, Any]
    mistakes: Sequence[Mistake]
    seed: int
    evaluate: EvaluateSettings
    answers: tuple[np.ndarray, np.ndarray] | None = None
    sheet: bytes | None = None
    copies: Pairs = field(default=())
    conflicts: Pairs = field(default=())

    @property
    def task(self) -> str:
        """The task: "classification", "multilabel" or "regression"."""
        return task_of(self.metrics)


def draw_plots(facts: Facts) -> dict[str, bytes]:
    """Return all figures as PNG bytes by name; those with nothing to show are left out."""
    figures = _page_figures(facts, LIGHT)
    if facts.task != "regression":
        rows = _rows(facts)
        figures["f1"] = f1_figure({name: row["f1"] for name, row in rows.items() if row["examples"]}, LIGHT)
    if facts.data["kind"] != "text" and facts.mistakes:
        figures["mistakes"] = mistakes_figure(facts.mistakes, LIGHT)
    return figures


def _page_figures(facts: Facts, theme: Theme) -> dict[str, bytes]:
    """Return the figures that are part of the page; the rest of it draws F1 and mistakes as text and pictures."""
    figures = {}
    if facts.task == "classification":
        figures["confusion"] = confusion_figure(facts.metrics["test"]["confusion"], facts.metrics["labels"], theme)
    elif facts.answers is not None:
        figures["scatter"] = scatter_figure(*facts.answers, facts.metrics["labels"], theme)
        figures["residuals"] = residuals_figure(*facts.answers, facts.metrics["labels"], theme)
    if facts.training["history"]:
        figures["curves"] = _curves(facts.training, theme)
    return figures | trust_figures(facts.metrics, theme)


def render_report(facts: Facts, plots: Mapping[str, bytes]) -> str:
    """Return the page: one HTML file that refers to nothing outside itself, for light and dark screens of any width.

    Args:
        facts: What it says.
        plots: What `draw_plots` returned for them.
    """
    dark = _page_figures(facts, DARK)
    rejects = facts.data["rejects"]
    return _template(_TEMPLATE).render(
        **_said_first(facts),
        kind=facts.data["kind"],
        metrics=facts.metrics,
        samples=facts.evaluate.bootstrap_samples,
        comparison=_comparison(facts.metrics),
        facts=_key_facts(facts),
        task=facts.task,
        **_confusions(facts),
        mistakes=[_show_mistake(mistake) for mistake in facts.mistakes],
        classes=[] if facts.task == "regression" else _classes(_rows(facts)),
        targets=_rows(facts) if facts.task == "regression" else {},
        matrix_classes=classes_drawn(len(facts.metrics["labels"])),
        table_classes=_TABLE_CLASSES,
        pictures={name: {"light": _data_url(plots[name]), "dark": _data_url(dark[name])} for name in dark},
        strategies=_strategies(facts.training),
        backbones=_backbones(facts.choice),
        choice=facts.choice.get("why"),
        splits=_splits(facts),
        rejects=rejects[:_REJECTS],
        more_rejects=max(0, len(rejects) - _REJECTS),
        card=_card(facts),
    )


def render_model_card(facts: Facts) -> str:
    """Return the model card, in Markdown: what the page says in words, for registries and repositories.

    Its parts are those of Mitchell et al., 2019 (arXiv:1810.03993), as far as they follow from what was measured.
    """
    labels = facts.metrics["labels"]
    return _template(_CARD_TEMPLATE).render(
        **_said_first(facts),
        name=facts.name,
        takes=_TAKEN[facts.data["kind"]],
        gives=_GIVEN[facts.task],
        noun={"classification": "Classes", "multilabel": "Labels", "regression": "Targets"}[facts.task],
        labels=[_plain_markdown(label) for label in labels[:_CARD_LABELS]],
        more_labels=max(0, len(labels) - _CARD_LABELS),
        comparison=_comparison(facts.metrics),
        speed=_key_facts(facts)[-2:],
        tested=facts.metrics["test"]["examples"],
        examples={row[0]: row[1] for row in _splits(facts)["rows"]},
    )


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["count"] = _count
    environment.filters["number"] = _number
    environment.filters["cell"] = _plain_markdown
    return environment.get_template(name)


def _plain_markdown(text: object) -> str:
    """Return words of the data as they are, also where Markdown or a table would take them for something else."""
    return _MARKS.sub(r"\\\g<0>", " ".join(str(text).split()))


def _said_first(facts: Facts) -> dict[str, Any]:
    """Return what page and card both say."""
    return {
        "title": _title(facts),
        "interval": _percent(facts.evaluate.interval, 0),
        "verdict": _verdict(facts),
        "warnings": _warnings(facts),
        "headline": _headline(facts),
        "training_lines": _training_lines(facts),
        "data_facts": _data_facts(facts),
        "settings": _settings(facts),
        "cores": facts.speed["cpu_cores"],
        "trust": trust_facts(facts.metrics, show=_show, percent=_percent, number=_number),
    }


def _title(facts: Facts) -> str:
    noun, names = _NOUNS[facts.data["kind"]], facts.metrics["labels"]
    if facts.task == "regression":
        return f"{facts.name}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''} of {noun}s"
    return f"{facts.name}: {len(names)} {'labels' if facts.task == 'multilabel' else 'classes'} of {noun}s"


def _rows(facts: Facts) -> Mapping[str, Any]:
    """Return the metrics of each class, label or target by name."""
    rows: Mapping[str, Any] = facts.metrics["test"]["per_class" if facts.task == "classification" else "by_column"]
    return rows


def _show(metric: str, value: float) -> str:
    """Return a metric for people: shares in percent, the others as numbers."""
    if metric in ("r2", "pearson", "spearman", "mcc", "log_loss", "brier"):
        return f"{value:z.4f}".replace("-", "−")
    return _number(value) if metric in _NUMBERS else _percent(value)


def _headline(facts: Facts) -> dict[str, Any]:
    """Return the number that comes first with its interval, and lines on the next ones."""
    first, *others = HEADLINES[facts.task]
    test = facts.metrics["test"]

    def span(metric: str) -> str:
        return f"{_show(metric, test[metric]['low'])} to {_show(metric, test[metric]['high'])}"

    return {
        "name": words(first),
        "value": _show(first, test[first]["value"]),
        "span": span(first),
        "others": [f"{words(metric)} {_show(metric, test[metric]['value'])} ({span(metric)})" for metric in others],
    }


def _comparison(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the headline's bars: this model, the probe when it is another one, and a constant answer."""
    metric = LEADING[task_of(metrics)]
    rows = [("this model", metrics["test"][metric])]
    if metrics["shipped"] != "probe":
        rows.append(("probe (solved head only)", metrics["probe"]["test"][metric]))
    name, constant = _constant(metrics)
    return [
        {
            "name": name,
            "shown": _show(metric, numbers["value"]),
            # R2 may be below zero, where a bar has no length.
            **{end: min(1.0, max(0.0, numbers[end])) for end in ("value", "low", "high")},
        }
        for name, numbers in [*rows, (name, constant[metric])]
    ]


def _constant(metrics: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return what always giving one answer is called, and what it scores on the test split."""
    if "majority" in metrics:
        return f"always “{metrics['majority']['label']}”", metrics["majority"]["test"]
    return metrics["baseline"]["name"], metrics["baseline"]["test"]


def _confusions(facts: Facts) -> dict[str, Any]:
    """Return how many classes were wrong, and the most frequent ways to be wrong."""
    if facts.task != "classification":
        return {"wrong": 0, "confusions": []}
    metrics, labels = facts.metrics["test"], facts.metrics["labels"]
    return {
        "wrong": metrics["examples"] - sum(row[place] for place, row in enumerate(metrics["confusion"])),
        "confusions": [
            {"true": labels[true], "predicted": labels[guess], "count": count}
            for true, guess, count in most_frequent_confusions(metrics["confusion"], limit=_CONFUSIONS)
            if count > 1
        ],
    }


def _splits(facts: Facts) -> dict[str, Any]:
    """Return the table of splits: headings, and rows of cells."""
    if facts.task == "regression":
        return {
            "headings": ["examples", "target", "mean", "std. dev.", "range"],
            "rows": [
                [
                    split,
                    _count(facts.data["examples"][split]),
                    name,
                    _number(values["mean"]),
                    _number(values["standard_deviation"]),
                    f"{_number(values['min'])} to {_number(values['max'])}",
                ]
                for name, by_split in facts.data["targets"].items()
                for split in SPLITS
                if (values := by_split.get(split))
            ],
        }
    noun = "label" if facts.task == "multilabel" else "class"
    return {
        "headings": ["examples", f"smallest {noun}", f"largest {noun}"],
        "rows": [
            [
                split,
                _count(facts.data["examples"][split] if noun == "label" else sum(counts.values())),
                _count(min(counts.values())),
                _count(max(counts.values())),
            ]
            for split in SPLITS
            if (counts := facts.data["counts"].get(split))
        ],
    }


def _verdict(facts: Facts) -> str:
    """Return one sentence on what fine-tuning brought, no stronger than its interval allows."""
    if facts.metrics["shipped"] == "probe":
        if not facts.training["history"]:
            return "This is the probe: a head solved on the frozen backbone's features, without fine-tuning."
        return (
            "Validation did not prefer the fine-tuned model, so the probe ships: a head solved on the frozen backbone."
        )
    metric = LEADING[facts.task]
    gain = facts.metrics["gain_over_probe"][metric]
    points = f"{100 * abs(gain['value']):.1f} points{'' if facts.task == 'classification' else f' of {words(metric)}'}"
    span = f"{_percent(facts.evaluate.interval, 0)} interval {_signed(gain['low'])} to {_signed(gain['high'])}"
    if gain["low"] > 0:
        return f"Fine-tuning made it better than its probe by {points} ({span})."
    if gain["high"] < 0:
        return f"Validation preferred it, yet on the test split it is worse than its probe by {points} ({span})."
    return f"This test split cannot tell it from its probe: {_signed(gain['value'])} points ({span})."


def _warnings(facts: Facts) -> list[str]:
    """Return what a reader must know before believing the headline."""
    duplicates = facts.data["duplicates"]
    warnings = []
    if across := duplicates["across_splits"]:
        warnings.append(
            f"{_things(across, 'example')} {'stand' if across > 1 else 'stands'} in more than one split, "
            "so the score may be too good."
        )
    if conflicting := duplicates["conflicting_labels"]:
        warnings.append(
            f"{_things(conflicting, 'example')} {'come' if conflicting > 1 else 'comes'} repeatedly, with different "
            "labels."
        )
    warnings += _leakage_warnings(facts.data)
    if overlap := known_overlap(facts.download["source"], facts.backbone.source_dataset):
        warnings.append(overlap)
    rows = _rows(facts)
    few = [name for name, row in rows.items() if row.get("examples", 10) < 10]
    one, many = ("label", "labels") if facts.task == "multilabel" else ("class", "classes")
    if few:
        named = f"the {one} “{few[0]}” has" if len(few) == 1 else f"{len(few)} of {len(rows)} {many} have"
        warnings.append(
            f"{named[0].upper()}{named[1:]} fewer than 10 test examples: figures of single {many} are rough."
        )
    metric = LEADING[facts.task]
    if facts.metrics["test"][metric]["low"] <= _constant(facts.metrics)[1][metric]["value"]:
        warnings.append("This model is not clearly better than always giving the same answer.")
    return warnings


def _leakage_warnings(data: Mapping[str, Any]) -> list[str]:
    """Return what the audit found beyond copies to the byte, which have warnings of their own."""
    leakage = data.get("leakage")
    if leakage is None:
        return []
    warnings = []
    dropped = leakage["dropped"]["examples"]
    if total := leakage.get("groups", {}).get("groups", 0):
        warnings.append(
            f"The examples come in {_things(total, 'group')}. The intervals of the scores allow for that; those of "
            "slices, calibration and coverage take each example for independent of the others."
        )
    if (groups := leakage.get("groups", {}).get("across_splits", 0)) and not dropped:
        warnings.append(
            f"{_things(groups, 'group')} {'stand' if groups > 1 else 'stands'} in more than one split, so the score "
            "says less about groups that training never saw."
        )
    if (across := leakage["across_splits"]) and not dropped:
        by = ", ".join(f"{_count(number)} across {splits}" for splits, number in leakage["across_by_splits"].items())
        warnings.append(
            f"{_things(across, 'pair')} of exact or near copies {'stand' if across > 1 else 'stands'} in different "
            f"splits ({by}), so the score may be too good; `regraft data audit` lists them."
        )
    if conflicts := leakage["near_conflicts"]["pairs"]:
        warnings.append(f"{_things(conflicts, 'pair')} of near copies {'have' if conflicts > 1 else 'has'} two labels.")
    return warnings


def _key_facts(facts: Facts) -> list[dict[str, str]]:
    metrics = facts.metrics["test"]
    if facts.task == "regression":
        first = [
            {"value": _show(name, metrics[name]["value"]), "name": _MEANINGS[name]} for name in ("mae", "spearman")
        ]
    else:
        is_class = facts.task == "classification"
        weakest = _classes(_rows(facts))[0]
        noun = "class" if is_class else "label"
        first = [
            {"value": _percent(metrics["f1" if is_class else "macro_f1"]["value"]), "name": "macro F1"},
            {"value": _percent(weakest["f1"], 0), "name": f"F1 of the weakest {noun}, {weakest['name']}"},
        ]
    return [
        *first,
        {
            "value": f"{facts.speed['latency_ms']['p50']:.0f} ms",
            "name": f"for one {_NOUNS[facts.data['kind']]} (99% within {facts.speed['latency_ms']['p99']:.0f} ms)",
        },
        {
            "value": f"{facts.speed['throughput']['examples_per_s']:,.0f}/s",
            "name": f"{_NOUNS[facts.data['kind']]}s, in batches of {facts.speed['throughput']['batch_size']}",
        },
    ]


def _classes(per_class: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return a row for each class that was tested, lowest F1 first."""
    rows = [{"name": name, **row} for name, row in per_class.items() if row["examples"]]
    return sorted(rows, key=lambda row: row["f1"])


def _card(facts: Facts) -> dict[str, Any]:
    """Return what the page shows of the data itself: examples, class balance, copies and groups across splits."""
    data = facts.data
    leakage = data.get("leakage") or {}
    groups = leakage.get("groups") or {"across_splits": 0, "listed": []}
    has_pictures = data["kind"] != "text" and facts.sheet is not None
    return {
        "sheet": _data_url(to_jpeg(facts.sheet)) if has_pictures and facts.sheet else None,
        "rows": data.get("shown", []) if data["kind"] == "text" else [],
        "balance": _balance(data),
        "across": leakage.get("across_splits", 0),
        "dropped": (leakage.get("dropped") or {"examples": 0})["examples"],
        "copies": [[_show_example(one) for one in pair] for pair in facts.copies],
        "conflicting": sum((leakage.get(kind) or {"pairs": 0})["pairs"] for kind in ("conflicts", "near_conflicts")),
        "conflicts": [[_show_example(one) for one in pair] for pair in facts.conflicts],
        "groups": [{**entry, "examples": _in_order(entry["examples"])} for entry in groups["listed"][:_GROUPS]],
        "groups_across": groups["across_splits"],
    }


def _in_order(by_split: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known by split in the order of splits: JSON files have it by name."""
    return {split: by_split[split] for split in SPLITS if split in by_split}


def _balance(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each class or label its examples by split, most frequent first, with its share of the largest."""
    counts = _in_order(data.get("counts", {}))
    totals = {label: sum(held[label] for held in counts.values()) for label in (data["labels"] if counts else ())}
    largest = max([*totals.values(), 1])
    return [
        {"name": label, "counts": {split: held[label] for split, held in counts.items()}, "share": total / largest}
        for label, total in sorted(totals.items(), key=lambda item: -item[1])
    ]


def _show_example(shown: Shown) -> dict[str, Any]:
    """Return what the page shows of an example: its caption, and a small picture or the beginning of a text."""
    caption = {"name": shown.name, "split": shown.split, "label": shown.label}
    return {**caption, **_show_content(shown.content)}


def _show_mistake(mistake: Mistake) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": mistake.name,
        "label": mistake.label,
        "predicted": mistake.predicted,
        "probability": mistake.probability,
    }
    why = {"why": _data_url(thumbnail(mistake.why).encoded) if isinstance(mistake.why, bytes) else mistake.why}
    return {**shown, **_show_content(mistake.content), **why}


def _show_content(content: bytes | str) -> dict[str, Any]:
    if isinstance(content, str):
        return {"text": content if len(content) <= _SHORT_TEXT else content[: _SHORT_TEXT - 1] + "…"}
    picture = thumbnail(content)
    return {"picture": _data_url(picture.encoded), "is_small": picture.longer_side_px <= _SMALL_IMAGE_PX}


def _data_facts(facts: Facts) -> list[tuple[str, str]]:
    data, duplicates = facts.data, facts.data["duplicates"]
    made = data["splits_made"]
    rows = [
        ("source", f"{facts.download['source']}, {_things(facts.download['files'], 'file')}"),
        ("licence", facts.download["licence"] or "not stated"),
        ("splits", f"{' and '.join(made)} made here, by {data.get('split_by', 'hash')}" if made else "as given"),
        ("set aside", _things(len(data["rejects"]), "unusable example")),
        ("exact copies", f"{_count(duplicates['extra_copies'])}, {_count(duplicates['across_splits'])} across splits"),
    ]
    if leakage := data.get("leakage"):
        rows.append(("near copies", _things(leakage["near"]["pairs"], "pair")))
        rows.append(("dropped as copies", _things(leakage["dropped"]["examples"], "example")))
    if data["kind"] == "image":
        rows.append(("median size", f"{data['median_short_side_px']:.0f} px (shorter side)"))
    elif data["kind"] == "audio":
        seconds, rates = data["audio_seconds"], ", ".join(data["audio_rates_hz"])
        rows.append(("length", f"median {seconds['p50']:.1f} s, longest {seconds['max']:.1f} s (training)"))
        rows.append(("sampling rates", f"{rates} Hz (training)"))
    else:
        lengths = data["text_length_characters"]
        rows.append(("text length", f"median {_count(lengths['p50'])}, longest {_count(lengths['max'])} characters"))
    return rows


def _curves(training: Mapping[str, Any], theme: Theme) -> bytes:
    """Draw the measure on validation data and the two losses by epoch; epoch 0 is the probe."""
    start, epochs = training["probe"]["validation"], training["history"]
    loss, measure = next(names for names in VALIDATION.values() if set(names) <= set(start))
    titles = {"log_loss": "log loss, nats an example" if measure == "accuracy" else "log loss, nats a label"}
    return curves_figure(
        {
            words(measure): {"validation": [start[measure], *(epoch[f"validation_{measure}"] for epoch in epochs)]},
            titles.get(loss, "squared error, in variances of the target"): {
                "validation": [start[loss], *(epoch[f"validation_{loss}"] for epoch in epochs)],
                "training": [math.nan, *(epoch["train_loss"] for epoch in epochs)],
            },
        },
        best_epoch=training["best_epoch"] if training["shipped"] != "probe" else 0,
        theme=theme,
    )


def _training_lines(facts: Facts) -> list[str]:
    """Return sentences: what ships and why, how it was trained, how fast."""
    training, timing = facts.training, facts.speed["training"]
    lines = [training["why"]]
    if training["history"]:
        chosen_by = "by pilot runs" if training["learning_rate_chosen_by"] == "pilot runs" else "in the settings"
        augmentation = training["augmentation"]
        varied = "with" if augmentation["used"] else "without"
        flipped = ", mirror images included" if augmentation["used"] and augmentation["flip"] else ""
        lines.append(
            f"{len(training['history'])} epochs at a peak rate of {training['learning_rate']:g}, chosen {chosen_by}, "
            f"{varied} augmentation{flipped}. {timing['examples_per_second']:,.0f} "
            f"{_NOUNS[facts.data['kind']]}s a second, {timing['finetune_seconds']:.0f} s in all."
        )
    return lines


def _strategies(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each strategy that short runs tried, the best first: what its best rate came to."""
    rows = []
    for tried in training["tried"]:
        loss = next(name for name in ("log_loss", "squared_error") if name in tried)
        best = min((run for run in tried["pilots"] if run[loss] is not None), key=lambda run: run[loss], default=None)
        rows.append(
            {
                "name": tried["strategy"],
                "loss": best and best[loss],
                "rate": best and f"{best['rate']:g}",
                "runs": len(tried["pilots"]),
                "ships": tried["strategy"] == training["shipped"],
            }
        )
    return sorted(rows, key=lambda row: math.inf if row["loss"] is None else row["loss"])


def _backbones(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each backbone that was a candidate, the best probe first; none if the backbone was named."""
    short_runs = {row["label"]: row["short_run_loss"] for row in choice.get("finalists", ())}
    return [
        {**row, "short_run_loss": short_runs.get(row["label"]), "taken": row["label"] == choice["label"]}
        for row in choice.get("ranked", ())
    ]


def _settings(facts: Facts) -> list[tuple[str, str]]:
    features, card = facts.features, facts.backbone
    size = (
        f"{features['image_size_px']} px" if features["image_size_px"] else f"at most {features['max_tokens']} tokens"
    )
    if view := features.get("view"):
        size += f", {view['windows']} window(s) of {view['seconds']:g} s at {view['rate_hz']} Hz as log-mel pictures"
    return [
        ("backbone", f"{card.name}, {card.parameters / 1e6:.1f} M parameters"),
        ("trained on", f"{card.source_dataset} ({card.licence})"),
        ("input", size),
        ("seed", str(facts.seed)),
    ]


def _data_url(encoded: bytes) -> str:
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def _percent(share: float, decimals: int = 1) -> str:
    """Return 0.976 as `97.6%`, and nothing short of one as `100%`."""
    text = f"{100 * share:.{decimals}f}%"
    if share < 1.0 and text == f"{100:.{decimals}f}%":
        return f"{100 - 10**-decimals:.{decimals}f}%"
    return text


def _number(value: float) -> str:
    """Return a number with four digits that count, without an exponent where people expect none."""
    if value == 0.0 or not 1e-4 <= abs(value) < 1e7:
        return f"{value:.4g}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}".replace("-", "−")


def _signed(difference: float) -> str:
    """Return a difference of shares in points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def _count(number: int) -> str:
    return f"{number:,}"


def _things(number: int, singular: str) -> str:
    return f"{_count(number) if number else 'no'} {singular}{'' if number == 1 else 's'}"
