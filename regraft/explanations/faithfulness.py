"""Whether what an explanation names is what the model goes by: hide it and see the answer fall, show it alone and see.

Deletion and insertion areas of Petsiuk et al., 2018 (RISE, arXiv:1806.07421), beside those of random orders.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from regraft.data.targets import REGRESSION
from regraft.explanations.attribution import Explainer, TextExplainer, evidence

STEPS = 8
RANDOM_ORDERS = 3


@dataclass(frozen=True)
class Areas:
    """Means of the answer while parts are hidden, or shown, in an order.

    Attributes:
        deletion: While they are hidden, the first first: a good order makes it low.
        insertion: While they are shown, the first first: a good order makes it high.
    """

    deletion: float
    insertion: float


def still(task: str, outputs: NDArray[np.float32], target: int, *, unit: float = 1.0) -> NDArray[np.float64]:
    """Return how much each row of `outputs` (N, K) still is the answer of the first row, shape (N,).

    The probability of the class or label `target`; of values, minus the distance to the first row's, in `unit`s.
    """
    found = evidence(task, outputs, target)
    return -np.abs(found - found[0]) / unit if task == REGRESSION else found


def areas_of(
    explainer: Explainer,
    content: Any,
    order: NDArray[np.int64],
    answer: Callable[[NDArray[np.float32]], NDArray[np.float64]],
) -> Areas:
    """Return both areas for the parts of `content` in `order`.

    Args:
        explainer: Of the model.
        content: An image, a recording, or a text.
        order: Numbers of its parts, the weightiest first.
        answer: From outputs (N, K), the first those of the whole input, to shape (N,): see `still`.
    """
    counts = np.unique(np.linspace(0, len(order), STEPS + 1).round().astype(np.int64))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    deleted = rank[None] >= counts[:, None]
    keep = np.concatenate([deleted, ~deleted])
    answers = answer(explainer.outputs_of_parts(content, keep))
    shares = counts / len(order)
    falling, rising = np.split(answers, 2)
    return Areas(float(np.trapezoid(falling, shares)), float(np.trapezoid(rising, shares)))


def measure(
    explainer: Explainer,
    contents: Sequence[Any],
    *,
    seed: int,
    unit: float = 1.0,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Any]]:
    """Return for each method how its order fares beside random ones, over the answers to `contents`.

    Args:
        explainer: Of the model.
        contents: Images, recordings or texts, at least one.
        seed: Of the random orders.
        unit: For values: what distances are measured in.
        advance: Told how many more inputs are done.

    Returns:
        By method: examples, deletion, insertion, random_deletion, random_insertion (means), better_deletion,
        better_insertion, better_both (shares of the examples on which the method's area is better than the mean of
        `RANDOM_ORDERS` random ones), and low and high: Wilson's 95% interval of better_both. Inputs of a single part,
        which have but one order, are left out.
    """
    rows: dict[str, list[tuple[Areas, Areas]]] = {method: [] for method in explainer.methods}
    for number, content in enumerate(contents):
        target = top_output(explainer, content)

        def answer(outputs: NDArray[np.float32], target: int = target) -> NDArray[np.float64]:
            return still(explainer.task, outputs, target, unit=unit)

        random = None
        for method in explainer.methods:
            weights = explainer.attribute(method, content, target).weights
            if len(weights) < 2:
                break
            if random is None:
                generator = np.random.default_rng([seed, number])
                drawn = [
                    areas_of(explainer, content, generator.permutation(len(weights)), answer)
                    for _ in range(RANDOM_ORDERS)
                ]
                random = mean_of(drawn)
            order = np.argsort(-weights, kind="stable")
            rows[method].append((areas_of(explainer, content, order, answer), random))
        advance(1)
    return {method: _summary(pairs) for method, pairs in rows.items() if pairs}


def mean_of(areas: Sequence[Areas]) -> Areas:
    """Return the means of both areas."""
    return Areas(float(np.mean([one.deletion for one in areas])), float(np.mean([one.insertion for one in areas])))


def top_output(explainer: Explainer, content: Any) -> int:
    """Return the number of the output to explain: the class given to `content`, its likeliest label, or 0 of values."""
    if explainer.task == REGRESSION:
        return 0
    whole: Any = [content] if isinstance(explainer, TextExplainer) else explainer.prepared(content)[None]
    return int(explainer.outputs(whole)[0].argmax())


def _summary(pairs: list[tuple[Areas, Areas]]) -> dict[str, Any]:
    ours, random = zip(*pairs, strict=True)
    deletion = np.array([mine.deletion < theirs.deletion for mine, theirs in pairs])
    insertion = np.array([mine.insertion > theirs.insertion for mine, theirs in pairs])
    both = int((deletion & insertion).sum())
    interval = stats.binomtest(both, len(pairs)).proportion_ci(method="wilson")
    return {
        "examples": len(pairs),
        "deletion": mean_of(ours).deletion,
        "insertion": mean_of(ours).insertion,
        "random_deletion": mean_of(random).deletion,
        "random_insertion": mean_of(random).insertion,
        "better_deletion": float(deletion.mean()),
        "better_insertion": float(insertion.mean()),
        "better_both": both / len(pairs),
        "low": float(interval.low),
        "high": float(interval.high),
    }
