"""A sample of a project's training examples, as a small folder for a stage that is not to hang on all the data."""

from dataclasses import asdict

from regraft.backbones.inputs import view
from regraft.data.records import Example, open_split, write_prepared
from regraft.data.targets import CLASSIFICATION
from regraft.files import read_json, replace_directory, write_json
from regraft.paths import Paths
from regraft.pretraining.sample import ABOUT, sample_folder
from regraft.ranking.rank import take_sample
from regraft.settings import EmbedSettings
from regraft.tuning.objective import OBJECTIVES

EXAMPLES = 384


def write_sample(paths: Paths, embed: EmbedSettings) -> None:
    """Write data/sample/: about `EXAMPLES` training examples as prepared data, and how a backbone is to look at them.

    It hangs on their contents alone (see `take_sample`), not on where they came from.
    """
    train = open_split(paths.prepared, "train")
    data = read_json(paths.reports / "data.json")
    rows = take_sample(train, train.labels, EXAMPLES, OBJECTIVES[train.task].groupings(train.labels)[0]).rows.tolist()
    examples = [
        Example(
            id=train.ids[row],
            name=train.ids[row],
            label=train.target(row),
            content=content,
            values=() if train.task == CLASSIFICATION else tuple(train.labels[row].tolist()),
            group="" if train.groups is None else str(train.groups[row]),
        )
        for row, content in zip(rows, train.inputs(rows), strict=True)
    ]
    about = {
        "image_size_px": embed.image_size_px,
        "median_short_side_px": data.get("median_short_side_px") if train.kind == "image" else None,
        "view": asdict(view(embed, data)) if train.kind == "audio" else None,
        "max_tokens": embed.max_tokens,
        "pair": data.get("pair") if train.kind == "text" else None,
    }
    with replace_directory(sample_folder(paths)) as folder:
        write_prepared(folder, train.kind, train.class_names, {"train": examples}, task=train.task)
        write_json(folder / ABOUT, about)
