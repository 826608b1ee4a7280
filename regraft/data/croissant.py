"""Croissant 1.0 metadata of a prepared dataset: what it holds, file by file and field by field, for other tools.

The vocabulary is that of http://mlcommons.org/croissant/1.0. What is not known (often a licence, always a date) is left
out rather than made up.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.data.records import read_info
from regraft.data.sources import hash_file
from regraft.data.targets import CLASSIFICATION, REGRESSION

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_CONTENT_TYPES = {"image": "sc:ImageObject", "text": "sc:Text", "audio": "sc:AudioObject"}
_MEANINGS = {"train": "cr:TrainingSplit", "validation": "cr:ValidationSplit", "test": "cr:TestSplit"}
_FORMATS = {".json": "application/json", ".txt": "text/plain"}
_RECORDS = "regraft-*.array_record-*"


def metadata(prepared: Path, download: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return the Croissant description of the dataset in the folder `prepared`.

    Args:
        prepared: What `records.write_prepared` wrote.
        download: reports/download.json: source, digest and, where they are known, licence, citation and homepage.
        where: The folder's path relative to the file that this is written to, for links.

    Raises:
        DataError: If `prepared` holds no prepared data.
    """
    info = read_info(prepared)
    noun = {"image": "images", "text": "texts", "audio": "recordings"}[info.kind]
    counts = ", ".join(f"{count} {split}" for split, count in info.counts.items())
    of = f"of {len(info.labels)} classes" if info.task == CLASSIFICATION else f"with {', '.join(info.labels[:8])}"
    source, digest = str(download["source"]), str(download["digest"])
    version = re.search(r"\b\d+\.\d+\.\d+\b", str(download.get("version") or ""))
    known = {
        "license": download.get("licence"),
        "citeAs": download.get("citation"),
        "url": download.get("homepage"),
        "version": version and version[0],
    }
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": re.sub(r"[^A-Za-z0-9_.-]+", "-", source.partition(":")[2] or f"{noun}-{digest[:12]}"),
        "description": f"{counts} {noun} {of}, checked and split for fine-tuning, from the source {source!r}.",
        "identifier": f"sha256:{digest}",
        **{key: value for key, value in known.items() if value},
        "distribution": [
            *(_file(path, where) for path in sorted(prepared.iterdir())),
            {
                "@type": "cr:FileSet",
                "@id": "records",
                "name": "records",
                "description": "A file of records (ArrayRecord, each a tf.train.Example) for each split.",
                "encodingFormat": "application/octet-stream",
                "includes": f"{where}/{_RECORDS}",
            },
        ],
        "recordSet": [
            _splits(info.counts),
            *([_classes(info.labels)] if info.task == CLASSIFICATION else []),
            _examples(info.kind, info.task, info.labels),
        ],
    }


def _file(path: Path, where: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": path.name,
        "name": path.name,
        "contentUrl": f"{where}/{path.name}",
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": _FORMATS.get(path.suffix, "application/octet-stream"),
        "sha256": hash_file(path),
    }


def _splits(counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        **_record_set("splits", "The splits and what they are for.", key="splits/name"),
        "dataType": "cr:Split",
        "field": [
            _field("splits/name", "sc:Text", "Name of the split."),
            _field("splits/url", "sc:URL", "What it is for."),
            _field("splits/examples", "sc:Integer", "How many examples it has."),
        ],
        "data": [
            {"splits/name": split, "splits/url": _MEANINGS[split], "splits/examples": count}
            for split, count in counts.items()
        ],
    }


def _classes(labels: Sequence[str]) -> dict[str, Any]:
    return {
        **_record_set("classes", "The classes by their number in the records.", key="classes/number"),
        "dataType": "sc:Enumeration",
        "field": [
            _field("classes/number", "sc:Integer", "The number of the class."),
            _field("classes/name", "sc:Text", "Its name."),
        ],
        "data": [{"classes/number": number, "classes/name": name} for number, name in enumerate(labels)],
    }


def _examples(kind: str, task: str, labels: Sequence[str]) -> dict[str, Any]:
    if task == CLASSIFICATION:
        label = {
            **_field("examples/label", ["sc:Integer", "cr:Label"], "The class, by its number.", column="label"),
            "references": {"field": {"@id": "classes/number"}},
        }
    else:
        one, what = ("sc:Float", "Real values") if task == REGRESSION else ("sc:Integer", "1 for each label that holds")
        text = f"{what}, in this order: {', '.join(labels)}."
        label = {**_field("examples/label", [one, "cr:Label"], text, column="values"), "repeated": True}
    from_name = {
        "fileSet": {"@id": "records"},
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": r"regraft-(.+)\.array_record-.*"},
    }
    return {
        **_record_set("examples", "One record for each example.", key="examples/name"),
        "field": [
            _field("examples/id", "sc:Text", "sha256 of the content as it came; copies share it.", column="id"),
            _field("examples/name", "sc:Text", "The file, or table and line, it came from.", column="name"),
            _field("examples/content", _CONTENT_TYPES[kind], "What the model gets to see.", column=kind),
            label,
            {
                **_field("examples/split", "sc:Text", "The split it is in."),
                "source": from_name,
                "references": {"field": {"@id": "splits/name"}},
            },
        ],
    }


def _record_set(name: str, description: str, *, key: str) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": description, "key": {"@id": key}}


def _field(
    identity: str, data_type: str | Sequence[str], description: str, *, column: str | None = None
) -> dict[str, Any]:
    source = {"fileSet": {"@id": "records"}, "extract": {"column": column}}
    return {
        "@type": "cr:Field",
        "@id": identity,
        "name": identity.rpartition("/")[2],
        "description": description,
        "dataType": data_type,
        **({"source": source} if column else {}),
    }
