"""The page and its figures: what they claim, and that they stand alone."""

import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regraft.backbones.card import Card
from regraft.evaluation.metrics import classification_metrics, paired_gain
from regraft.evaluation.plots import DARK, LIGHT, Mistake, confusion_figure, thumbnail
from regraft.evaluation.report import Facts, Shown, draw_plots, render_model_card, render_report
from regraft.settings import EvaluateSettings
from tests.evaluation.small_models import picture

EVALUATE = EvaluateSettings(bootstrap_samples=200)


def facts_of(labels, predicted, probe, class_names, *, kind="image", shipped="lp_ft", mistakes=()):
    """The facts of a report on a model that answered `predicted`, every other file as its stage writes it."""
    labels, predicted, probe = (np.array(answers) for answers in (labels, predicted, probe))
    settings: Any = {"samples": 200, "interval": 0.95, "seed": 7}
    tested, probed, most = (
        classification_metrics(labels, answers, class_names, **settings)
        for answers in (predicted, probe, np.zeros_like(labels))
    )
    counts = dict.fromkeys(class_names, 30)
    tuned = {
        "history": [
            {"epoch": 1, "train_loss": 0.5, "validation_log_loss": 0.4, "validation_accuracy": 0.9, "last_rate": 1e-4},
            {"epoch": 2, "train_loss": 0.3, "validation_log_loss": 0.3, "validation_accuracy": 0.92, "last_rate": 0.0},
        ],
        "best_epoch": 2,
        "learning_rate": 2e-4,
        "learning_rate_chosen_by": "pilot runs",
        "augmentation": {"used": True, "flip": False},
    }
    return Facts(
        name="fruit",
        metrics={
            "shipped": shipped,
            "labels": list(class_names),
            "test": tested,
            "probe": {"test": probed},
            "majority": {"label": class_names[0], "test": most},
            "gain_over_probe": paired_gain(labels, predicted, probe, classes=len(class_names), **settings),
        },
        speed={
            "latency_ms": {"p50": 12.3, "p99": 20.1, "calls": 100},
            "throughput": {"examples_per_s": 321.0, "batch_size": 32, "calls": 10},
            "cpu_cores": 2,
            "training": {"examples_per_second": 55.0, "finetune_seconds": 81.0},
        },
        training={
            "probe": {"validation": {"accuracy": 0.88, "log_loss": 0.5}},
            "shipped": shipped,
            "why": "Because of this and that.",
            "tried": [],
            **(tuned if shipped == "lp_ft" else {"history": [], "best_epoch": 0}),
        },
        choice={"name": "tiny", "image_size_px": None, "by": "settings"},
        data={
            "kind": kind,
            "labels": list(class_names),
            "counts": {"train": counts, "validation": counts, "test": counts},
            "splits_made": ["validation"],
            "rejects": [{"name": "train/b/3.png", "reason": "is <empty>"}],
            "duplicates": {"extra_copies": 0, "across_splits": 0, "conflicting_labels": 0},
            "median_short_side_px": 20,
            "text_length_characters": {"p50": 20, "p90": 30, "p99": 40, "max": 50},
        },
        download={"source": "folder", "files": 60, "licence": None},
        backbone=Card(
            name="tiny_image",
            kind="image",
            parameters=3_400_000,
            feature_size=12,
            pooling="average",
            weights_sha256="0" * 64,
            source_dataset="nothing",
            licence="CC0-1.0",
            origin="made in a test",
        ),
        features={"image_size_px": 32, "max_tokens": None},
        mistakes=list(mistakes),
        seed=7,
        evaluate=EVALUATE,
    )


def page_of(facts):
    return render_report(facts, draw_plots(facts))


def test_strategies_that_were_tried_are_shown_the_best_first():
    facts = facts_of(LABELS, BETTER, PROBE, ["a", "b", "c"])
    runs = {
        "gradual": [{"rate": 1e-4, "log_loss": 0.31}, {"rate": 3e-4, "log_loss": None}],
        "lora": [{"rate": 1e-2, "log_loss": None}],
        "lp_ft": [{"rate": 1e-4, "log_loss": 0.41}, {"rate": 3e-4, "log_loss": 0.25}],
    }
    tried = [{"strategy": name, "log_loss": None, "pilots": pilots} for name, pilots in runs.items()]
    page = page_of(replace(facts, training={**facts.training, "tried": tried}))
    assert "lp_ft, which ships 0.2500 0.0003 2 gradual 0.3100 0.0001 2 lora diverged – 1" in text_of(page)
    assert "in short runs" not in page_of(facts)


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("</style>")[1]))


LABELS = [0, 1, 2] * 40
PROBE = [0, 1, 0] * 40
BETTER = [0, 1, 2, 0, 1, 0] * 20


def test_the_page_refers_to_nothing_outside_itself():
    page = page_of(facts_of(LABELS, BETTER, PROBE, ["a", "b", "c"]))
    for reference in re.findall(r"""(?:src|href|srcset)\s*=\s*["']([^"']*)""", page):
        assert reference.startswith("data:image/"), reference[:80]
    assert "url(" not in page
    assert "<script" not in page
    assert "@import" not in page


def test_the_headline_is_the_accuracy_with_its_interval_beside_probe_and_majority():
    facts = facts_of(LABELS, BETTER, PROBE, ["a", "b", "c"])
    text = text_of(page_of(facts))
    accuracy = facts.metrics["test"]["accuracy"]
    assert text.index("83.3%") < text.index("What it gets wrong")
    assert f"95% interval {100 * accuracy['low']:.1f}% to {100 * accuracy['high']:.1f}%" in text
    assert "66.7%" in text  # the probe
    assert "33.3%" in text  # always a
    assert "better than its probe by 16.7 points" in text


@pytest.mark.parametrize(
    ("predicted", "claim"),
    [
        (BETTER, "Fine-tuning made it better than its probe by 16.7 points"),
        (PROBE, "This test split cannot tell it from its probe"),
        ([0, 0, 0] * 40, "on the test split it is worse than its probe by 33.3 points"),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval_allows(predicted, claim):
    assert claim in text_of(page_of(facts_of(LABELS, predicted, PROBE, ["a", "b", "c"])))


def test_a_shipped_probe_is_not_compared_with_itself():
    text = text_of(page_of(facts_of(LABELS, PROBE, PROBE, ["a", "b", "c"], shipped="probe")))
    assert "solved on the frozen backbone" in text
    assert "probe (solved head only)" not in text


def test_nearly_all_right_is_not_rounded_to_all_right():
    labels = [0, 1] * 5000
    text = text_of(page_of(facts_of(labels, [1, *labels[1:]], labels, ["a", "b"])))
    assert "99.9%" in text.split("accuracy")[0]


def test_names_and_texts_from_the_data_are_escaped():
    evil = "<script>alert(1)</script>"
    mistake = Mistake(evil, evil, "b", 0.9, f"a text with {evil} and more")
    facts = facts_of(LABELS, BETTER, PROBE, [evil, "b", "c"], kind="text", mistakes=[mistake])
    page = page_of(facts)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "is &lt;empty&gt;" in page  # the reason why an example was set aside


def test_a_leak_conflicting_labels_and_few_tests_are_said_at_the_top():
    facts = facts_of(LABELS[:12], BETTER[:12], PROBE[:12], ["a", "b", "c"])
    facts.data["duplicates"].update(across_splits=3, conflicting_labels=1)
    top = text_of(page_of(facts)).split("What it gets wrong")[0]
    assert "3 examples stand in more than one split" in top
    assert "1 example comes repeatedly, with different labels" in top
    assert "3 of 3 classes have fewer than 10 test examples" in top


def test_copies_across_splits_and_their_labels_are_said_at_the_top_unless_they_were_dropped():
    facts = facts_of(LABELS, BETTER, PROBE, ["a", "b", "c"])
    leakage = {
        "across_splits": 5,
        "across_by_splits": {"train and test": 4, "train and validation": 1},
        "near": {"pairs": 6},
        "near_conflicts": {"pairs": 1},
        "dropped": {"examples": 0},
    }
    facts.data["leakage"] = leakage
    text = text_of(page_of(facts))
    top = text.split("What it gets wrong")[0]
    assert "5 pairs of exact or near copies stand in different splits (4 across train and test" in top
    assert "1 pair of near copies has two labels" in top
    assert "near copies 6 pairs" in text
    leakage["dropped"] = {"examples": 3}
    text = text_of(page_of(facts))
    assert "in different splits" not in text
    assert "dropped as copies 3 examples" in text


def test_the_page_shows_examples_class_balance_copies_conflicts_and_groups():
    facts = facts_of(LABELS, BETTER, PROBE, ["a", "b", "c"])
    facts.data["counts"] = {"test": {"a": 5, "b": 8, "c": 3}, "train": {"a": 70, "b": 1234, "c": 7}}
    facts.data["leakage"] = {
        "across_splits": 9,
        "across_by_splits": {"train and test": 9},
        "near": {"pairs": 0},
        "conflicts": {"pairs": 1},
        "near_conflicts": {"pairs": 1},
        "dropped": {"examples": 0},
        "groups": {
            "groups": 40,
            "across_splits": 21,
            "listed": [{"group": f"speaker {n}", "examples": {"test": 2, "train": n}} for n in range(21)],
        },
    }
    pair = (Shown("train/1.png", "train", "a", picture(10)), Shown("test/2.png", "test", "b", picture(11)))
    page = page_of(replace(facts, sheet=picture(99), copies=[pair] * 6, conflicts=[pair]))
    text = text_of("</style>" + page.split("The data itself")[1])
    assert "class train test b 1,234 8 a 70 5 c 7 3" in text
    assert "9 pairs of exact or near copies; the first 6, the others are in reports/data.json" in text
    assert "train a train/1.png test b test/2.png" in text
    assert "Copies with different labels 2 pairs; the first 1, the others" in text
    assert "speaker 3 3 in train, 2 in test" in text
    assert "speaker 19" in text
    assert "speaker 20" not in text
    assert "and 1 more" in text
    assert page.count('class="sheet" src="data:image/jpeg') == 1
    top = text_of(page).split("What it gets wrong")[0]
    assert "21 groups stand in more than one split" in top
    assert "The examples come in 40 groups. The intervals of the scores allow for that" in top


def test_texts_are_shown_as_rows_and_escaped():
    evil = "<script>alert(1)</script>"
    facts = facts_of(LABELS, BETTER, PROBE, ["a", "b", "c"], kind="text")
    row = {"name": "x:1", "label": "a", "split": "test", "text": f"text with {evil}"}
    facts.data["shown"] = [{"title": "a", "examples": [row]}]
    one, other = Shown("x:1", "train", "a", evil), Shown("y:2", "test", "b", "other")
    facts.data["leakage"] = {
        "across_splits": 1,
        "across_by_splits": {"train and test": 1},
        "near": {"pairs": 1},
        "near_conflicts": {"pairs": 0},
        "dropped": {"examples": 1},
    }
    page = page_of(replace(facts, sheet=picture(99), copies=[(one, other)]))
    assert "<script" not in page
    assert "test text with &lt;script&gt;" in re.sub(r"<[^>]+>|\s+", " ", page).replace("  ", " ").replace("  ", " ")
    assert 'class="sheet"' not in page
    assert "1 pair of exact or near copies, of which one side was dropped" in text_of(page)


def test_a_flawless_model_has_no_mistakes_to_show():
    facts = facts_of(LABELS, LABELS, PROBE, ["a", "b", "c"])
    assert "Nothing: all 120 test examples are right" in text_of(page_of(facts))
    assert "mistakes" not in draw_plots(facts)


def test_many_classes_and_long_names_still_make_a_short_page():
    names = [f"class number {number} with a name far too long for any axis" for number in range(150)]
    labels = np.arange(600) % 150
    predicted = np.where(np.arange(600) % 7 == 0, (labels + 1) % 150, labels)
    page = page_of(facts_of(labels, predicted, predicted, names))
    assert "The 12 of 150 classes with most mistakes" in text_of(page)
    assert "the other 138" in page
    assert len(page) < 1_500_000


def test_figures_are_the_same_bytes_each_time_and_fit_their_background():
    mistakes = [Mistake(f"{n}.png", "a", "b", 0.9, picture(40 * n)) for n in range(5)]
    facts = facts_of(LABELS, BETTER, PROBE, ["a", "b", "c"], mistakes=mistakes)
    first, second = draw_plots(facts), draw_plots(facts)
    assert set(first) == {"confusion", "curves", "f1", "mistakes"}
    assert first == second
    for theme in (LIGHT, DARK):
        figure = Image.open(io.BytesIO(confusion_figure([[3, 1], [0, 4]], ["a", "b"], theme))).convert("RGB")
        assert np.asarray(figure)[2, 2].tobytes().hex() == theme.surface.removeprefix("#")


def test_one_mistake_and_twelve_both_fill_a_contact_sheet():
    for number in (1, 12):
        mistakes = [Mistake("x.png", "a", "b", 0.9, picture(9))] * number
        png = draw_plots(replace(facts_of(LABELS, BETTER, PROBE, "abc"), mistakes=mistakes))["mistakes"]
        assert Image.open(io.BytesIO(png)).width > 800


def test_a_thumbnail_shrinks_large_pictures_and_keeps_the_pixels_of_small_ones():
    large, small = thumbnail(picture(90, side_px=900)), thumbnail(picture(90, side_px=28))
    assert large.longer_side_px == 160
    assert len(large.encoded) < 10_000
    assert small.longer_side_px == 28
    pixels = np.asarray(Image.open(io.BytesIO(small.encoded)))
    assert (pixels == np.asarray(Image.open(io.BytesIO(picture(90, side_px=28))))).all()


def test_class_names_that_look_like_formulas_are_drawn_as_they_are():
    names = ["$a_$", "$_$ x", "$0-$10"]
    assert confusion_figure([[3, 1, 0], [0, 4, 0], [1, 0, 2]], names, LIGHT).startswith(b"\x89PNG")


def test_a_target_that_the_backbone_may_have_been_trained_on_is_named():
    facts = facts_of(LABELS, LABELS, LABELS, ["a", "b", "c"])
    on_imagenet = replace(facts.backbone, source_dataset="ImageNet-1k")
    dogs = replace(facts, backbone=on_imagenet, download={**facts.download, "source": "tfds:stanford_dogs"})
    assert "It may have seen test examples already" in text_of(page_of(dogs))
    assert "It may have seen test examples" not in text_of(page_of(replace(facts, backbone=on_imagenet)))


def test_the_model_card_says_in_markdown_what_the_page_says():
    facts = facts_of([0, 1, 1, 0] * 10, [0, 1, 1, 1] * 10, [0, 1, 0, 0] * 10, ["a|b", "c"])
    card = render_model_card(facts)
    assert "**accuracy 75.0%**" in card
    assert 'load_model("models:/' in card
    assert r"a\|b, c" in card  # a bar would end a cell
    assert "  \n" not in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert len({row.count("|") - row.count(r"\|") for row in rows}) == 1
    assert re.findall(r"^## (.*)", card, re.MULTILINE) == [
        "Intended use", "Test numbers", "Where it fails, and how sure it is", "Data", "Model",
    ]  # fmt: skip
