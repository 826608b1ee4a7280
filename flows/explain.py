"""Explaining an answer of a registered model, with the weights, features and data that it was registered with."""

import tempfile
from pathlib import Path
from typing import Any

from flows import pipeline
from regraft.errors import DataError, RegistryError
from regraft.fingerprint import locked_hash
from regraft.paths import Paths
from regraft.registry.versions import recorded_files
from regraft.settings import Settings


def explain(paths: Paths, settings: Settings, reference: str, given: str, out: Path) -> dict[str, Any]:
    """Write `out`/explanation.html, and for images and recordings a PNG for each method.

    Args:
        paths: The project whose registry is asked, and whose DVC cache holds what the model was made from.
        settings: Its settings.
        reference: `NAME` (the champion), `NAME@ALIAS` or `NAME/VERSION`.
        given: A file or a text, as `predict.predict` takes it.
        out: A folder, which is made if need be.

    Returns:
        {"model", "version", "answer" (the registered model's, by column), "target", "methods": by name their deletion
        and insertion area, "random": those of random orders, "neighbours": name, answer and similarity of training
        examples, "files": names in `out`}.

    Raises:
        RegistryError: If there is no such model, or it was registered without its dvc.lock.
        DataError: If the input cannot be read.
        RegraftError: If the DVC cache no longer holds its weights or data.
    """
    from regraft.data import pairs
    from regraft.explanations import explain as explaining
    from regraft.registry.predict import as_json, open_model
    from regraft.tuning.classifier import load_classifier

    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; the explanation goes into a folder.")
    with tempfile.TemporaryDirectory(prefix="regraft-") as temporary:
        with open_model(paths, settings, reference) as opened:
            content: Any = opened.read(given)
            answer = as_json(opened.answer([content]).to_dict("records")[0])
            recorded = recorded_files(paths, settings, f"{opened.name}/{opened.version}", Path(temporary) / "recorded")
        lock = recorded.folder / "project" / paths.lock.name
        if not lock.exists():
            raise RegistryError(
                f"{opened.name} version {opened.version} was registered without its dvc.lock, by an earlier version of "
                "this program, so its weights cannot be told; `regraft run` registers the next one with it."
            )
        then = Paths(Path(temporary) / "project")
        for output in ("model", "backbones", "features", "prepared"):
            place = getattr(then, output)
            place.parent.mkdir(parents=True, exist_ok=True)
            pipeline.restore_output(paths.root, locked_hash(then, place, lock.read_text("utf-8")), place)
        classifier = load_classifier(then.model, then.backbones)
        raw = pairs.join([str(text) for text in content.values()]) if isinstance(content, dict) else content
        found = explaining.explain(
            classifier, raw, backbones=then.backbones, prepared=then.prepared, features=then.features
        )
        out.mkdir(parents=True, exist_ok=True)
        files = ["explanation.html"]
        page = explaining.render(found, model=f"{opened.name} version {opened.version}", given=given, answer=answer)
        (out / files[0]).write_text(page, "utf-8")
        for attribution in found.attributions:
            if found.picture is not None:
                files.append(f"{attribution.method.lower().replace(' ', '-')}.png")
                (out / files[-1]).write_bytes(explaining.draw(found.picture, attribution))
    return {
        "model": opened.name,
        "version": opened.version,
        "answer": answer,
        "target": found.target,
        "methods": {
            attribution.method: vars(areas) for attribution, areas in zip(found.attributions, found.areas, strict=False)
        },
        "random": found.random and vars(found.random),
        "neighbours": [
            {"name": one.name, "answer": one.answer, "similarity": one.similarity} for one in found.neighbours
        ],
        "files": files,
    }
