"""A project's examples beside another source: what of them is in it too."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from regraft.cli import app
from regraft.data import audio
from regraft.data.against import Others, compare, read_others
from regraft.data.audit import Member
from regraft.data.project_audit import audit_against, audit_project
from regraft.errors import DataError
from regraft.paths import Paths
from tests.sounds import record_tones, recorded


def project(root, source):
    root.mkdir(exist_ok=True)
    sections = ("preprocess", "backbone", "embed", "finetune", "evaluate", "promote", "placement", "tracking")
    lines = ["name: x", "seed: 7", f"download: {{source: '{source}'}}", *(f"{section}: {{}}" for section in sections)]
    (root / "params.yaml").write_text("\n".join(lines))
    return Paths(root)


def draw(folder, names, *, seed=0):
    for number, name in enumerate(names):
        noise = np.random.default_rng([seed, number]).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).resize((60, 60), Image.Resampling.BICUBIC).save(folder / name)


@pytest.fixture
def pictures(tmp_path):
    """A project of ten pictures in splits of its own, and a pile of others with three of them in it."""
    mine, pile = tmp_path / "mine", tmp_path / "pile"
    draw(mine, [f"{split}/{label}/{n}.png" for split in ("train", "test") for label in ("a", "b") for n in range(3)])
    draw(pile, [f"{n:02d}.png" for n in range(8)], seed=1)
    Image.open(mine / "test/a/0.png").save(pile / "same.bmp")
    Image.open(mine / "test/a/0.png").save(pile / "same again.bmp")
    Image.open(mine / "train/b/2.png").resize((40, 40)).save(pile / "deep.jpg", quality=80)
    (pile / "broken.png").write_bytes(b"")
    (pile / "README").write_text("of other makers")
    return project(tmp_path / "project", f"folder:{mine}"), pile


FOUND = {
    "examples": 11,
    "unreadable": 1,
    "exact": [["test/a/0.png", "same again.bmp"]],
    "near": [["train/b/2.png", "deep.jpg"]],
    "examples_with_copies": {"train": 1, "validation": 0, "test": 1},
}


def test_pictures_that_lie_in_another_folder_too_are_named_with_their_copy(pictures):
    paths, pile = pictures
    assert audit_against(paths, f"folder:{pile}").as_json() == {"source": f"folder:{pile}", **FOUND}
    assert audit_against(paths, f"folder:{pile}", near=False).as_json()["near"] == []
    assert audit_project(paths).as_json()["exact"] == []


def test_an_archive_is_compared_like_the_folder_in_it(pictures, tmp_path):
    paths, pile = pictures
    with zipfile.ZipFile(tmp_path / "pile.zip", "w") as archive:
        for file in pile.iterdir():
            archive.write(file, f"pile/{file.name}")
    found = audit_against(paths, f"folder:{tmp_path / 'pile.zip'}").as_json()
    assert {key: found[key] for key in FOUND} == FOUND
    assert list(paths.scratch.iterdir()) == []


def test_the_command_adds_what_it_found_to_its_json_and_says_it_in_words(pictures):
    paths, pile = pictures
    command = ["data", "audit", "--root", str(paths.root), "--against", f"folder:{pile}"]
    printed = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert printed["against"] == {"source": f"folder:{pile}", **FOUND}
    assert printed["exact"] == []
    said = " ".join(CliRunner().invoke(app, command).stdout.split())
    assert "1 examples have an exact copy there, 1 a near one (1 of train, 1 of test)" in said


def test_lines_of_tables_are_compared_whatever_their_columns_are_called(tmp_path):
    (tmp_path / "mine.csv").write_text(
        "text,label\n" + "".join(f"question number {n} of a long list,{n % 2}\n" for n in range(20))
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.csv").write_text("utterance\nsomething else\n\nQUESTION number 3 of a long list!\n")
    (tmp_path / "other" / "more.jsonl").write_text('{"body": "question number 5 of a long list", "lang": "en"}\n')
    paths = project(tmp_path / "project", f"csv:{tmp_path / 'mine.csv'}")
    found = audit_against(paths, f"csv:{tmp_path / 'other'}").as_json()
    assert found["exact"] == [["mine.csv:7", "more.jsonl:1"]]
    assert found["near"] == [["mine.csv:5", "train.csv:4"]]
    assert found["examples"] == 3


def test_recordings_are_compared(tmp_path):
    record_tones(tmp_path / "mine", per_class=4)
    (tmp_path / "pile").mkdir()
    (tmp_path / "pile" / "x.wav").write_bytes((tmp_path / "mine" / "low" / "01.wav").read_bytes())
    paths = project(tmp_path / "project", f"folder:{tmp_path / 'mine'}")
    found = audit_against(paths, f"folder:{tmp_path / 'pile'}")
    assert found.as_json()["exact"] == [["low/01.wav", "x.wav"]]


@pytest.mark.parametrize(("channels", "subtype"), [(1, "PCM_16"), (2, "PCM_16"), (1, "PCM_24"), (1, "FLOAT")])
def test_a_recording_is_the_same_as_what_was_prepared_from_it(tmp_path, channels, subtype):
    samples = np.random.default_rng(0).normal(0, 0.1, (4000, channels))
    file = tmp_path / "a.wav"
    file.write_bytes(recorded(samples, 8000, subtype=subtype))
    prepared = audio.decode(file.read_bytes()).to_wav()
    found = compare(
        "audio", [Member("x", "test", "l", 0)], [prepared], Others(["a.wav"], [file], 0), source="s", near=False
    )
    assert [(member.name, name) for member, name in found.exact] == [("x", "a.wav")]


def test_a_source_of_another_kind_is_refused(pictures, tmp_path):
    paths, _ = pictures
    record_tones(tmp_path / "sounds", per_class=1)
    with pytest.raises(DataError, match="holds no image example to compare with; found"):
        audit_against(paths, f"folder:{tmp_path / 'sounds'}")


def test_a_table_of_numbers_among_others_is_counted_as_unreadable_and_alone_is_refused(tmp_path):
    (tmp_path / "texts.csv").write_text("text,label\nhow are you today,a\nnot so well,b\n")
    (tmp_path / "numbers.csv").write_text("height,weight\n1.5,2.5\n2.5,3.5\n4.5,3.5\n")
    others = read_others("text", tmp_path, None)
    assert (others.contents, others.unreadable) == (["how are you today", "not so well"], 3)
    with pytest.raises(DataError, match=r"numbers\.csv"):
        read_others("text", tmp_path / "numbers.csv", None)
