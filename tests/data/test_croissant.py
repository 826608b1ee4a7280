"""Croissant metadata, held against what the specification 1.0 asks for."""

import hashlib
import json
import re

import pytest

from regraft.data.croissant import CONTEXT, metadata
from regraft.data.records import Example, write_prepared
from regraft.files import write_json

DOWNLOAD = {"source": "folder", "digest": "ab" * 32, "licence": None}
FROM_TFDS = {
    "source": "tfds:dogs/small:1.2.0",
    "digest": "cd" * 32,
    "licence": "CC0-1.0",
    "citation": "Nobody (2020)",
    "homepage": "https://example.org/dogs",
    "version": "dogs/small/1.2.0 (tensorflow-datasets 4.9.9)",
}
# Properties that https://docs.mlcommons.org/croissant/docs/croissant-spec.html has from schema.org, used here.
FROM_SCHEMA = {"name", "description", "distribution", "license", "url", "version", "identifier", "contentUrl",
               "contentSize", "encodingFormat", "sha256"}  # fmt: skip
ATOMIC = {"sc:Boolean", "sc:Date", "sc:Float", "sc:Integer", "sc:Text", "sc:URL", "sc:ImageObject", "sc:AudioObject"}
PNG = b"\x89PNG not looked at here"


def prepared(folder, kind="image", task="classification", names=("cat", "dog")):
    def example(number):
        values = {"classification": (), "regression": (0.5, number), "multilabel": (1.0, float(number % 2))}[task]
        content = f"text {number}" if kind == "text" else PNG
        return Example(f"{number:064}", f"{number}.x", names[number % 2], content, values)

    splits = {"train": [example(n) for n in range(4)], "validation": [example(4)], "test": [example(5)]}
    write_prepared(folder, kind, list(names), splits, task=task)
    return folder


def nodes(value):
    """Every JSON object in the description, but for the context and the records in it."""
    if isinstance(value, dict):
        yield value
        for key, part in value.items():
            if key not in {"@context", "data"}:
                yield from nodes(part)
    elif isinstance(value, list):
        for part in value:
            yield from nodes(part)


@pytest.fixture(params=[("image", "classification"), ("text", "regression"), ("audio", "multilabel")])
def described(request, tmp_path):
    return metadata(prepared(tmp_path / "prepared", *request.param), FROM_TFDS, where="../data/prepared")


def test_it_has_what_the_specification_requires_as_far_as_it_is_known(described):
    assert described["@type"] == "sc:Dataset"
    assert described["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert described["license"] == "CC0-1.0"
    assert described["citeAs"] == "Nobody (2020)"
    assert described["url"] == "https://example.org/dogs"
    assert described["version"] == "1.2.0"
    assert described["description"].startswith("4 train, 1 validation, 1 test ")
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", described["name"])
    assert "datePublished" not in described  # not known, so not made up


def test_what_is_not_known_is_left_out(tmp_path):
    described = metadata(prepared(tmp_path / "prepared"), DOWNLOAD, where="x")
    assert {"license", "citeAs", "url", "version"}.isdisjoint(described)
    assert described["name"] == "images-abababababab"


def test_every_key_is_a_term_of_the_vocabulary(described):
    assert CONTEXT["@vocab"] == CONTEXT["sc"] == "https://schema.org/"
    assert CONTEXT["cr"] == "http://mlcommons.org/croissant/"
    assert CONTEXT["dct"] == "http://purl.org/dc/terms/"
    for key in {key for node in nodes(described) for key in node}:
        assert key.startswith("@") or key in CONTEXT or key in FROM_SCHEMA, key
    for term in CONTEXT.values():
        spelled = term["@id"] if isinstance(term, dict) else term
        assert spelled == "en" or spelled.startswith(("cr:", "dct:", "http"))


def test_names_are_unique_and_references_lead_somewhere(described):
    defined = [node["@id"] for node in nodes(described) if "@type" in node and "@id" in node]
    assert len(defined) == len(set(defined))
    references = [node["@id"] for node in nodes(described) if set(node) == {"@id"}]
    assert references
    assert set(references) <= set(defined)


def test_every_file_of_the_dataset_is_there_with_its_size_and_checksum(tmp_path):
    folder = prepared(tmp_path / "data" / "prepared")
    (tmp_path / "reports").mkdir()
    described = metadata(folder, DOWNLOAD, where="../data/prepared")
    files = [node for node in described["distribution"] if node["@type"] == "cr:FileObject"]
    assert {node["name"] for node in files} == {path.name for path in folder.iterdir()}
    for node in files:
        content = (tmp_path / "reports" / node["contentUrl"]).read_bytes()
        assert node["sha256"] == hashlib.sha256(content).hexdigest()
        assert node["contentSize"] == f"{len(content)} B"
    (records,) = (node for node in described["distribution"] if node["@type"] == "cr:FileSet")
    held = sorted(path.name for path in (tmp_path / "reports").glob(records["includes"]))
    assert held == [f"regraft-{split}.array_record-00000-of-00001" for split in ("test", "train", "validation")]


def test_examples_have_id_name_content_label_and_split(described):
    sets = {node["name"]: node for node in described["recordSet"]}
    fields = {field["name"]: field for field in sets["examples"]["field"]}
    assert list(fields) == ["id", "name", "content", "label", "split"]
    for field in fields.values():
        types = [field["dataType"]] if isinstance(field["dataType"], str) else field["dataType"]
        assert ATOMIC.intersection(types)
        assert field["source"]["fileSet"] == {"@id": "records"}
    assert "cr:Label" in fields["label"]["dataType"]
    pattern = fields["split"]["source"]["transform"]["regex"]
    found = re.fullmatch(pattern, "regraft-validation.array_record-00000-of-00001")
    assert found is not None
    assert found[1] == "validation"
    assert [record["splits/examples"] for record in sets["splits"]["data"]] == [4, 1, 1]


def test_columns_are_those_of_the_records_and_classes_those_of_their_numbers(tmp_path):
    folder = prepared(tmp_path / "prepared")
    described = metadata(folder, DOWNLOAD, where="x")
    stored = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
    columns = {
        field["source"]["extract"]["column"]
        for node in described["recordSet"]
        for field in node["field"]
        if "column" in field.get("source", {}).get("extract", {})
    }
    assert columns == set(stored)
    (classes,) = (node for node in described["recordSet"] if node["@id"] == "classes")
    assert classes["data"] == [
        {"classes/number": 0, "classes/name": "cat"},
        {"classes/number": 1, "classes/name": "dog"},
    ]
    for record in classes["data"]:
        assert set(record) == {field["@id"] for field in classes["field"]}


def test_the_same_data_give_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        described = metadata(prepared(tmp_path / name / "prepared"), FROM_TFDS, where="x")
        write_json(tmp_path / name / "croissant.json", described)
    assert (tmp_path / "one" / "croissant.json").read_bytes() == (tmp_path / "other" / "croissant.json").read_bytes()
