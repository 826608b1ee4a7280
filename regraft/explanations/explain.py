"""One input explained: which parts speak for the answer, how far that can be trusted, and which examples it is like."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from regraft.backbones.extractor import extractor_as
from regraft.data.records import open_split
from regraft.data.targets import REGRESSION
from regraft.explanations import faithfulness
from regraft.explanations.attribution import Attribution, PictureExplainer, explainer_of
from regraft.files import read_json
from regraft.tuning.classifier import Classifier

NEIGHBOURS = 5
RANDOM_ORDERS = 3
SHOWN_PX = 320
# Share of the colour of the heat over the picture, where it is hottest.
HEAT = 0.65


@dataclass(frozen=True)
class Neighbour:
    """A training example that the frozen backbone finds like the input.

    Attributes:
        name: Of the example.
        answer: Its label or values in words.
        similarity: Cosine of the two features, in [-1, 1].
        content: The encoded image, or the text; None for recordings.
    """

    name: str
    answer: str
    similarity: float
    content: bytes | str | None


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Attributes:
        target: Name of the output that is explained.
        attributions: One for each method, the one to show first first.
        areas: Deletion and insertion area of each, in their order; none if the input has but one part.
        random: The mean of those of random orders.
        picture: What the model sees, float32 (windows, side, side, 3) in [0, 255]; None for texts.
        neighbours: The most alike first.
    """

    target: str
    attributions: tuple[Attribution, ...]
    areas: tuple[faithfulness.Areas, ...]
    random: faithfulness.Areas | None
    picture: NDArray[np.float32] | None
    neighbours: tuple[Neighbour, ...]


def explain(
    classifier: Classifier, content: Any, *, backbones: Path, prepared: Path, features: Path, seed: int = 0
) -> Explanation:
    """Explain what `classifier` answers to `content`.

    Args:
        classifier: The model.
        content: An encoded image, a WAV file, a text, or a pair of texts as one.
        backbones: The backbone as it was before fine-tuning.
        prepared: The data that the model learned from.
        features: Frozen features of that data, as the embed stage wrote them.
        seed: Of the random orders.
    """
    explainer = explainer_of(classifier)
    target = faithfulness.top_output(explainer, content)
    attributions = tuple(explainer.attribute(method, content, target) for method in explainer.methods)
    parts = len(attributions[0].weights)
    unit = 1.0
    if classifier.task == REGRESSION:
        unit = float(open_split(prepared, "train").labels.std(axis=0, dtype=np.float64)[target])

    def areas(order: NDArray[np.int64]) -> faithfulness.Areas:
        return faithfulness.areas_of(
            explainer, content, order, lambda outputs: faithfulness.still(classifier.task, outputs, target, unit=unit)
        )

    found: tuple[faithfulness.Areas, ...] = ()
    random = None
    if parts > 1:
        found = tuple(areas(np.argsort(-attribution.weights, kind="stable")) for attribution in attributions)
        drawn = [areas(np.random.default_rng([seed, number]).permutation(parts)) for number in range(RANDOM_ORDERS)]
        random = faithfulness.mean_of(drawn)
    picture = explainer.prepared(content) if isinstance(explainer, PictureExplainer) else None
    neighbours = _neighbours(content, backbones=backbones, prepared=prepared, features=features)
    return Explanation(classifier.labels[target], attributions, found, random, picture, neighbours)


def _neighbours(content: bytes | str, *, backbones: Path, prepared: Path, features: Path) -> tuple[Neighbour, ...]:
    """Return the training examples whose frozen features point most nearly the same way."""
    extractor = extractor_as(backbones, read_json(features / "features.json"))
    given: Any = extractor.prepare(tf.constant([content] if extractor.kind == "text" else content))
    mine = np.asarray(extractor.model(given if extractor.kind == "text" else given[None], training=False))[0]
    known = np.load(features / "train.npy")
    length = np.linalg.norm(known, axis=1) * np.linalg.norm(mine)
    similarity = known @ mine / np.maximum(length, np.finfo(np.float32).tiny)
    train = open_split(prepared, "train")
    return tuple(
        Neighbour(
            train.names[row],
            train.target(row),
            float(similarity[row]),
            None if extractor.kind == "audio" else train.inputs([row])[0],
        )
        for row in map(int, np.argsort(-similarity, kind="stable")[:NEIGHBOURS])
    )


def draw(picture: NDArray[np.float32], attribution: Attribution) -> bytes:
    """Return a PNG of what the model saw, (windows, side, side, 3), with the heat over it, windows side by side."""
    if attribution.heat is None:
        raise ValueError("texts have no picture")
    heat = attribution.heat[..., None]
    colour = mpl.colormaps["inferno"](attribution.heat)[..., :3] * 255.0
    mixed = picture * (1.0 - HEAT * heat) + colour * HEAT * heat
    return _png(mixed)


def _png(pictures: NDArray[np.floating]) -> bytes:
    row = np.concatenate(list(pictures), axis=1).round().clip(0, 255).astype(np.uint8)
    image = Image.fromarray(row)
    if image.height < SHOWN_PX:
        times = SHOWN_PX / image.height
        image = image.resize((round(image.width * times), SHOWN_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def render(explanation: Explanation, *, model: str, given: str, answer: Mapping[str, Any]) -> str:
    """Return a page of its own (HTML) that shows the explanation, offline, light or dark.

    Args:
        explanation: Of one input.
        model: Name and version of the model.
        given: What the input is called; texts are shown as they are.
        answer: The registered model's answer by column, as `predict.predict` returns it.
    """
    methods = []
    for place, attribution in enumerate(explanation.attributions):
        row: dict[str, Any] = {"name": attribution.method}
        if explanation.areas:
            row["areas"] = explanation.areas[place]
        if explanation.picture is not None:
            row["picture"] = _uri(draw(explanation.picture, attribution))
        else:
            row["words"] = attribution.words()
        methods.append(row)
    return _template().render(
        model=model,
        given=given,
        answer={name: cell for name, cell in answer.items() if name not in ("input", "probabilities")},
        target=explanation.target,
        methods=methods,
        random=explanation.random,
        seen=None if explanation.picture is None else _uri(_png(explanation.picture)),
        neighbours=[
            {**vars(one), "picture": _thumbnail(one.content) if isinstance(one.content, bytes) else None}
            for one in explanation.neighbours
        ],
    )


def _thumbnail(content: bytes) -> str:
    pixels = tf.io.decode_image(content, channels=3, expand_animations=False).numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((SHOWN_PX // 2, SHOWN_PX // 2))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _uri(buffer.getvalue())


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@cache
def _template() -> jinja2.Template:
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "page.html.j2"
    )
