"""Several sources put together: where their files lie, what is joined, what does not fit, what moves."""

import numpy as np
import pytest
from PIL import Image

import tasks.download
import tasks.preprocess
from regraft import fingerprint, project
from regraft.data import sources
from regraft.data.examples import Collection, Reject, join
from regraft.data.project_audit import audit_project
from regraft.data.records import Example, open_split, read_info
from regraft.errors import DataError, SettingsError
from regraft.files import read_json
from regraft.paths import Paths
from regraft.settings import DownloadSettings, PreprocessSettings, check_settings, load_settings
from tests.sounds import record_tones


@pytest.fixture
def paths(tmp_path):
    return Paths(tmp_path / "project")


def draw(folder, *, first, count=12, classes=("cat", "dog")):
    """Write `count` pictures a class, no two alike; `first` tells one folder's pictures from another's."""
    for label in classes:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            pixels = np.random.default_rng([number, len(label), ord(label[0])]).integers(0, 256, (9, 12, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number}.png")
    return f"folder:{folder}"


def write_texts(path, *, first=0, count=30, header="message,category"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"message number {n},{'ham' if n % 2 else 'spam'}" for n in range(first, first + count)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return f"csv:{path}"


def run(paths, *source, **settings):
    paths.root.mkdir(exist_ok=True)
    tasks.download.run(DownloadSettings(source=source[0] if len(source) == 1 else list(source)), paths)
    tasks.preprocess.run(PreprocessSettings(**settings), paths)


def tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def names_by_split(paths):
    info = read_info(paths.prepared)
    return {split: set(open_split(paths.prepared, split).names) for split in info.counts}


def test_every_source_has_its_folder_and_all_examples_are_learnt_from(paths, tmp_path):
    run(paths, draw(tmp_path / "mine", first=0), draw(tmp_path / "yours", first=50, classes=("cat", "fox")))
    assert {path.name for path in paths.raw.iterdir()} == {"1-mine", "2-yours", ".sources.json"}
    info = read_info(paths.prepared)
    assert info.labels == ("cat", "dog", "fox")
    assert sum(info.counts.values()) == 48
    names = set().union(*names_by_split(paths).values())
    assert {"1-mine/dog/3.png", "2-yours/fox/50.png"} <= names
    assert all((paths.raw / name).is_file() for name in names)
    report = read_json(paths.reports / "download.json")
    assert (report["source"], report["files"]) == ("folder + folder", 48)
    assert report["sources"]["2-yours"]["files"] == 24


def test_another_source_at_the_end_moves_no_file_and_no_example(paths, tmp_path):
    given = [draw(tmp_path / name, first=first) for name, first in (("a", 0), ("b", 20), ("c", 40))]
    run(paths, *given[:2])
    files, splits = tree(paths.raw), names_by_split(paths)
    run(paths, *given)
    after = tree(paths.raw)
    assert all(after[name] == content for name, content in files.items() if not name.startswith("."))
    moved = names_by_split(paths)
    assert all(splits[split] <= moved[split] for split in splits)


def test_a_list_of_one_source_is_that_source(paths, tmp_path):
    given = draw(tmp_path / "mine", first=0)
    tasks.download.run(DownloadSettings(source=given), paths)
    alone = {**tree(paths.raw), **tree(paths.reports)}
    tasks.download.run(DownloadSettings(source=[given]), paths)
    assert {**tree(paths.raw), **tree(paths.reports)} == alone
    assert "cat/0.png" in alone


def test_a_single_source_may_hold_any_file_and_is_never_taken_for_several(paths, tmp_path):
    given = draw(tmp_path / "mine", first=0)
    (tmp_path / "mine" / ".sources.json").write_text('["cat"]')
    run(paths, given)
    assert read_info(paths.prepared).labels == ("cat", "dog")


def test_tables_are_joined_and_the_test_split_of_one_stays_the_test_split(paths, tmp_path):
    write_texts(tmp_path / "a" / "train.csv", count=40)
    write_texts(tmp_path / "a" / "test.csv", first=100, count=10)
    run(paths, f"csv:{tmp_path / 'a'}", write_texts(tmp_path / "more.csv", first=200))
    splits = names_by_split(paths)
    assert splits["test"] == {f"1-a/test.csv:{line}" for line in range(2, 12)}
    assert "2-more/more.csv:2" in splits["train"] | splits["validation"]
    report = read_json(paths.reports / "data.json")
    assert report["splits_made"] == ["validation"]
    assert report["columns"] == {"text": "message", "target": "category"}


def test_groups_are_found_in_the_names_that_people_gave_and_not_in_those_of_the_sources(paths, tmp_path):
    run(paths, draw(tmp_path / "a", first=10), draw(tmp_path / "b", first=40), group_pattern=r"^\w+/(\d)")
    groups = read_json(paths.reports / "data.json")["leakage"]["groups"]
    assert (groups["groups"], groups["without_group"]) == (4, 0)  # tens of 1, 2, 4 and 5
    splits = names_by_split(paths)
    tens = {split: {name.rpartition("/")[2][0] for name in names} for split, names in splits.items()}
    assert not tens["train"] & tens.get("test", set())


def test_sets_of_labels_of_two_sources_are_put_together(paths, tmp_path):
    for name, labels in (("a", ("red|big", "red", "big")), ("b", ("red|loud", "loud", "red"))):
        rows = [f"text {name} {n},{labels[n % 3]}" for n in range(60)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    run(paths, f"csv:{tmp_path / 'a.csv'}", f"csv:{tmp_path / 'b.csv'}", task="multilabel")
    assert read_info(paths.prepared).labels == ("big", "loud", "red")
    train = open_split(paths.prepared, "train")
    targets = {train.target(row) for row in range(len(train))}
    assert targets == {"big|red", "red", "big", "loud|red", "loud"}


def test_class_folders_and_a_table_of_labels_fit_together(paths, tmp_path):
    table = tmp_path / "table"
    draw(table / "pictures", first=50)
    rows = [f"{path.relative_to(table)},{path.parent.name}" for path in sorted(table.rglob("*.png"))]
    (table / "labels.csv").write_text("\n".join(["file,label", *rows]))
    run(paths, draw(tmp_path / "folders", first=0), f"folder:{table}")
    assert sum(read_info(paths.prepared).counts.values()) == 48
    assert read_json(paths.reports / "data.json")["columns"] == {"file": "file", "target": "label"}


def test_recordings_of_two_sources_are_joined(paths, tmp_path):
    for name in ("one", "two"):
        record_tones(tmp_path / name)
    run(paths, f"folder:{tmp_path / 'one'}", f"folder:{tmp_path / 'two'}")
    report = read_json(paths.reports / "data.json")
    assert report["kind"] == "audio"
    assert report["duplicates"]["extra_copies"] == sum(report["examples"].values()) / 2  # each is there twice


def test_a_copy_in_another_source_is_found_across_splits(paths, tmp_path):
    write_texts(tmp_path / "a" / "train.csv", count=40)
    write_texts(tmp_path / "a" / "test.csv", first=100, count=10)
    given = [f"csv:{tmp_path / 'a'}", write_texts(tmp_path / "more.csv", first=105)]
    paths.root.mkdir()
    (paths.root / "params.yaml").write_text(
        f"name: x\ndownload: {{source: ['{given[0]}', '{given[1]}']}}\n"
        + "".join(f"{key}: {{}}\n" for key in SECTIONS)
        + "seed: 7\n"
    )
    found = audit_project(paths, near=False)
    pairs = {(one.name, other.name) for one, other in found.across}
    assert pairs == {(f"1-a/test.csv:{line}", f"2-more/more.csv:{line - 5}") for line in range(7, 12)}


SECTIONS = ("preprocess", "backbone", "embed", "finetune", "evaluate", "promote", "placement", "tracking")


def test_rejects_say_in_which_source_they_lie(paths, tmp_path):
    given = [draw(tmp_path / "a", first=0, count=60), draw(tmp_path / "b", first=100)]
    (tmp_path / "b" / "cat" / "broken.png").write_text("no picture")
    run(paths, *given)
    rejects = read_json(paths.reports / "data.json")["rejects"]
    assert [reject["name"] for reject in rejects] == ["2-b/cat/broken.png"]


def test_sources_of_different_kinds_are_refused_before_anything_is_copied(paths, tmp_path):
    given = [draw(tmp_path / "a", first=0), write_texts(tmp_path / "b.csv")]
    with pytest.raises(DataError, match=r"a' holds image data, 'csv:.*b\.csv' holds text data"):
        run(paths, *given)
    assert not paths.raw.exists()


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("message,topic", "ham", "the target column is category in 1-a and topic in 2-b"),
        ("message,category", "number", "the task is classification in 1-a and regression in 2-b"),
    ],
)
def test_sources_that_do_not_fit_together_are_named_with_what_differs(paths, tmp_path, header, rows, message):
    given = [write_texts(tmp_path / "a.csv"), f"csv:{tmp_path / 'b.csv'}"]
    lines = [f"text {n},{n / 7 if rows == 'number' else 'ham' if n % 2 else 'spam'}" for n in range(40)]
    (tmp_path / "b.csv").write_text("\n".join([header, *lines]))
    with pytest.raises(DataError, match=message):
        run(paths, *given)


def test_a_fault_in_one_source_names_it(paths, tmp_path):
    given = [write_texts(tmp_path / "a.csv"), f"csv:{tmp_path / 'b.csv'}"]
    (tmp_path / "b.csv").write_text("message,category\n")
    with pytest.raises(DataError, match=r"source 2-b: b\.csv has column names"):
        run(paths, *given)


def test_a_source_named_twice_is_refused(paths, tmp_path):
    given = draw(tmp_path / "a", first=0)
    with pytest.raises(DataError, match="twice"):
        run(paths, given, f"folder:{tmp_path}/b/../a")


def test_settings_take_one_source_or_a_list_of_at_least_one():
    def check(source):
        rest: dict[str, dict[str, str]] = {name: {} for name in SECTIONS}
        return check_settings({"name": "x", "seed": 1, **rest, "download": {"source": source}}, "params.yaml")

    assert check("folder:a").download.sources == ["folder:a"]
    assert check(["folder:a", "folder:b"]).download.sources == ["folder:a", "folder:b"]
    for wrong in ([], [3], 3):
        with pytest.raises(SettingsError, match=r"download\.source"):
            check(wrong)


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        ("folder:Über meine Fotos", "1-Über-meine-Fotos"),
        ("csv:reviews.v2.csv", "1-reviews.v2"),
        ("folder:photos.tar.gz", "1-photos"),
        ("folder:😀", "1-source"),
    ],
)
def test_a_sources_folder_is_called_after_it(tmp_path, place, folder):
    path = tmp_path / place.partition(":")[2]
    path.write_text("x") if "." in path.name else path.mkdir()
    found = sources.parse_all([place, "package:mnist5k", "tfds:glue/sst2:2.0.0"], tmp_path)
    assert list(found) == [folder, "2-mnist5k", "3-glue-sst2-2.0.0"]


def test_the_fingerprint_says_which_source_changed(paths, tmp_path):
    given = [draw(tmp_path / "a", first=0), draw(tmp_path / "b", first=20)]
    made = project.create(paths.root, source=given, name="pets")
    settings = load_settings(made.params)
    assert settings.download.source == given
    assert settings.preprocess.kind == "image"
    fingerprint.refresh_inputs(made, settings, ["download"])
    before = read_json(made.inputs)["source"]
    assert list(before) == ["1-a", "2-b"]
    assert fingerprint.moved_inputs(made, settings, "download") == []
    (tmp_path / "b" / "cat" / "20.png").unlink()
    assert fingerprint.moved_inputs(made, settings, "download") == ["the source"]
    fingerprint.refresh_inputs(made, settings, ["download"])
    after = read_json(made.inputs)["source"]
    assert (after["1-a"], after["2-b"]["files"]) == (before["1-a"], before["2-b"]["files"] - 1)


def test_a_new_project_refuses_sources_of_different_kinds(paths, tmp_path):
    given = [draw(tmp_path / "a", first=0), write_texts(tmp_path / "b.csv")]
    with pytest.raises(DataError, match="must be of one kind"):
        project.create(paths.root, source=given, name="pets")
    assert not paths.root.exists()


def test_joining_adds_counts_and_keeps_what_is_known_of_each_example():
    def part(identity, side):
        example = Example(identity, f"cat/{identity}.png", "cat", "", ())
        return Collection(
            "image", {"train": [example]}, [Reject("z.png", "is empty")], ignored_files=2, rotated=1,
            short_sides_px={identity: side},
        )  # fmt: skip

    joined = join({"1-a": part("x", 8), "2-b": part("y", 9)})
    assert [example.name for example in joined.splits["train"]] == ["1-a/cat/x.png", "2-b/cat/y.png"]
    assert [reject.name for reject in joined.rejects] == ["1-a/z.png", "2-b/z.png"]
    assert (joined.ignored_files, joined.rotated, joined.reencoded) == (4, 2, 0)
    assert joined.short_sides_px == {"x": 8, "y": 9}
