"""Sources at a URL, on a real web server: looked at by planning, imported by DVC, versioned, and gone or silent."""

import errno
import io
import shutil
import socket
import subprocess
import zipfile

import numpy as np
import pytest
from dvc.fs import localfs
from dvc.repo import Repo
from PIL import Image
from ruamel.yaml import YAML

from flows import imports, pipeline, repository
from regraft.data import remotes, sources
from regraft.data.project_audit import audit_project
from regraft.errors import DataError, RegraftError, ResourceError
from regraft.files import read_json
from regraft.project import create
from regraft.settings import load_settings
from tests.file_server import serving

TABLE = "message,category\n" + "".join(f"message {n},{'ham' if n % 2 else 'spam'}\n" for n in range(60))


@pytest.fixture
def server():
    with serving() as server:
        server.files["/data/train.csv"] = TABLE.encode()
        yield server


@pytest.fixture
def project(tmp_path, server):
    return new_project(tmp_path / "project", f"csv:{server.url('/data/train.csv')}")


@pytest.fixture(autouse=True)
def _warnings_anew():
    imports._warn_once.cache_clear()


def new_project(root, source, **options):
    imports.check_remotes([source] if isinstance(source, str) else source, root)
    paths = create(root, source=source, name="mail", **options)
    repository.start_project(paths.root)
    return paths


def why(paths):
    """Return why download is stale; nothing if it is clean."""
    return pipeline.plan(paths.root)[0].why


def download(paths, *, force=False):
    return pipeline.run_stage(paths.root, "download", force=force)


def record(paths):
    """Return the only .dvc file of the project."""
    (found,) = paths.root.glob("imports/*/*.dvc")
    return YAML(typ="safe", pure=True).load(found.read_text())


def packed(seed=0, count=12):
    """Return a zip of class folders with pictures."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for label in ("cat", "dog"):
            for number in range(count):
                picture = io.BytesIO()
                pixels = np.random.default_rng([seed, number, len(label)]).integers(0, 256, (9, 12, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(picture, "PNG")
                archive.writestr(f"{label}/{number}.png", picture.getvalue())
    return buffer.getvalue()


def test_a_table_at_a_url_is_imported_once_and_its_version_is_on_record(project, server):
    assert why(project) == ("has never run",)
    assert [method for method, _ in server.asked] == ["HEAD", "HEAD"]  # init and plan looked, and fetched nothing
    assert download(project)
    assert (project.raw / "train.csv").read_text() == TABLE
    found = record(project)
    assert found["meta"]["version"] == {"etag": found["deps"][0]["checksum"]}
    assert found["deps"][0]["path"] == server.url("/data/train.csv")
    assert len(found["outs"][0]["md5"]) == 32
    report = read_json(project.reports / "download.json")
    assert (report["source"], report["files"]) == (f"csv:{server.url('/data/train.csv')}", 1)
    server.asked.clear()
    assert why(project) == ()
    assert [method for method, _ in server.asked] == ["HEAD"]


def test_a_changed_file_at_the_url_is_noticed_and_fetched(project, server):
    why(project)
    download(project)
    server.files["/data/train.csv"] += b"one more,ham\n"
    (reason,) = why(project)
    assert reason.startswith("source.version.etag changed from")
    assert download(project)
    assert (project.raw / "train.csv").read_text() == TABLE + "one more,ham\n"
    assert why(project) == ()


def test_a_new_etag_on_the_same_content_makes_nothing_else_stale(project, server):
    why(project)
    download(project)
    before = read_json(project.reports / "download.json")
    server.tell = "Last-Modified"
    assert why(project)
    download(project)
    assert read_json(project.reports / "download.json") == before


def test_without_an_etag_size_and_time_of_change_tell_versions_apart(project, server):
    server.tell = "Last-Modified"
    why(project)
    download(project)
    assert record(project)["meta"]["version"] == {"bytes": len(TABLE), "modified": server.modified}
    assert why(project) == ()
    server.modified = "Tue, 03 Mar 2026 10:00:00 GMT"
    assert why(project) == (
        "source.version.modified changed from Mon, 02 Mar 2026 10:00:00 GMT to Tue, 03 Mar 2026 10:00:00 GMT",
    )


def test_a_server_that_tells_no_versions_is_warned_of_and_force_fetches_anew(project, server, caplog):
    server.tell = ""
    why(project)
    assert "says neither which version it has" in caplog.text
    download(project)
    server.files["/data/train.csv"] = TABLE.replace("message 1,", "message X,").encode()
    assert why(project) == ()
    download(project, force=True)
    assert "message X," in (project.raw / "train.csv").read_text()


def test_a_server_that_refuses_to_send_headers_alone_is_asked_for_the_file(project, server):
    server.no_head = True
    assert why(project)
    assert download(project)
    assert (project.raw / "train.csv").read_text() == TABLE


def test_a_full_disk_is_said_to_be_one(project, server, monkeypatch):
    why(project)

    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Repo, "imp_url", no_room)
    with pytest.raises(ResourceError, match=r"train\.csv could not be stored: .*No space left"):
        download(project)


def test_a_copy_changed_through_its_link_into_the_cache_is_fetched_again(project, server):
    why(project)
    download(project)
    (copy,) = project.root.glob("imports/*/train.csv")
    copy.chmod(0o644)
    with copy.open("ab") as file:  # into the file that DVC keeps, where the two are one
        file.write(b"edited by hand,ham\n")
    copy.chmod(0o444)
    server.asked.clear()
    download(project)
    assert "GET" in [method for method, _ in server.asked]
    assert copy.read_text() == TABLE


def test_what_is_in_the_cache_is_not_fetched_again(project, server):
    why(project)
    download(project)
    shutil.rmtree(project.raw)
    (copy,) = project.root.glob("imports/*/train.csv")
    copy.unlink()
    assert why(project)
    server.asked.clear()
    download(project)
    assert server.asked == []
    assert (project.raw / "train.csv").read_text() == TABLE


@pytest.mark.parametrize("silence", ["stopped", 503, 429])
def test_a_silent_server_leaves_a_fetched_source_unchanged_and_says_so_once(project, server, caplog, silence):
    why(project)
    download(project)
    if silence == "stopped":
        server.server_close()
        server.shutdown()
    else:
        server.status = silence
    assert why(project) == ()
    assert why(project) == ()
    assert len(caplog.messages) == 1
    assert server.url("/data/train.csv") in caplog.text
    assert "counts as unchanged" in caplog.text


def test_a_silent_server_stops_a_project_that_has_no_copy(project, server):
    server.status = 503
    with pytest.raises(ResourceError, match=r"train\.csv cannot be had now: its server answers 503"):
        pipeline.plan(project.root)


def test_a_server_that_takes_the_call_and_says_nothing_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(imports, "LOOK_TIMEOUTS_S", {"connect_timeout": 0.2, "read_timeout": 0.2})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/train.csv"
        with pytest.raises(ResourceError, match="does not answer"):
            imports.check_remotes([f"csv:{url}"], tmp_path)


@pytest.mark.parametrize(
    ("status", "message"), [(404, "does not exist: its server answers 404"), (403, "may not be fetched")]
)
def test_a_file_that_is_gone_or_forbidden_is_an_error_with_or_without_a_copy(project, server, status, message):
    server.status = status
    with pytest.raises(DataError, match=message):
        pipeline.plan(project.root)
    server.status = 0
    why(project)
    download(project)
    server.status = status
    with pytest.raises(DataError, match=message):
        pipeline.plan(project.root)


def test_a_project_is_not_made_for_a_url_that_has_nothing(tmp_path, server):
    with pytest.raises(DataError, match="404"):
        new_project(tmp_path / "new", f"csv:{server.url('/nothing.csv')}")
    assert not (tmp_path / "new").exists()


def test_half_a_file_is_not_taken_for_the_whole(project, server):
    why(project)
    server.truncate = True
    with pytest.raises(ResourceError, match=r"train\.csv cannot be had now"):
        download(project)
    server.truncate = False
    assert download(project)
    assert (project.raw / "train.csv").read_text() == TABLE


def test_a_file_that_changes_between_plan_and_import_is_not_recorded_as_planned(project, server):
    why(project)
    server.files["/data/train.csv"] += b"one more,ham\n"
    with pytest.raises(ResourceError, match="changed after this run was planned"):
        download(project)
    assert why(project) == ("has never run",)
    assert download(project)


def test_a_stage_run_by_hand_refuses_a_copy_of_another_version(project, server):
    why(project)
    download(project)
    server.files["/data/train.csv"] += b"one more,ham\n"
    why(project)
    settings = load_settings(project.params)
    (found,) = sources.parse_all(settings.download.sources, project.root).values()
    with pytest.raises(DataError, match="is not the planned version"):
        sources.at_hand(found, project.root, project.state)


def test_an_archive_at_a_url_is_unpacked(tmp_path, server):
    server.files["/pets.zip"] = packed()
    source = f"folder:{server.url('/pets.zip')}"
    with pytest.raises(DataError, match="--kind image"):
        new_project(tmp_path / "guess", source)
    paths = new_project(tmp_path / "project", source, kind="image")
    why(paths)
    download(paths)
    assert len(list(paths.raw.glob("*/*.png"))) == 24
    assert read_json(paths.reports / "download.json")["unpacked"]["files"] == 24


def test_remote_and_local_sources_are_put_together_and_the_one_that_changed_is_named(tmp_path, server):
    (tmp_path / "mine.csv").write_text(TABLE.replace("message", "letter").replace("letter,", "message,", 1))
    paths = new_project(tmp_path / "project", [f"csv:{server.url('/data/train.csv')}", f"csv:{tmp_path / 'mine.csv'}"])
    why(paths)
    download(paths)
    assert {path.name for path in paths.raw.iterdir()} == {"1-train", "2-mine", ".sources.json"}
    server.files["/data/train.csv"] += b"one more,ham\n"
    (reason,) = why(paths)
    assert reason.startswith("source.1-train.version.etag changed")


def test_git_tracks_the_record_and_not_the_copy(tmp_path, server):
    subprocess.run(["git", "init", "-q", str(tmp_path / "project")], check=True)
    paths = new_project(tmp_path / "project", f"csv:{server.url('/data/train.csv')}")
    why(paths)
    download(paths)
    status = ["git", "status", "--porcelain", "--untracked-files=all", "imports"]
    seen = subprocess.run(status, cwd=paths.root, capture_output=True, text=True, check=True).stdout
    assert {line.rpartition("/")[2] for line in seen.splitlines()} == {"train.csv.dvc", ".gitignore"}


def test_a_project_that_has_fetched_nothing_says_so_when_audited(project):
    why(project)
    with pytest.raises(DataError, match="regraft run"):
        audit_project(project)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("csv:ftp://host/train.csv", "nothing here can fetch from ftp"),
        ("csv:https://me:secret@host/train.csv", r"https://\.\.\.@host/train\.csv holds a login"),
        ("csv:https://secret@host/train.csv", r"https://\.\.\.@host/train\.csv holds a login"),
        ("csv:ssh://me:secret@host/train.csv", r"ssh://\.\.\.@host/train\.csv holds a login"),
        ("folder:https://host/train.csv", "over HTTP a folder comes as an archive"),
        ("folder:https://host/pictures/", "over HTTP a folder comes as an archive"),
        ("csv:gs://bucket/train.csv", r"pip install 'dvc\[gs\]'"),
        ("csv:ssh://host/train.csv", r"pip install 'dvc\[ssh\]'"),
        ("csv:file://host/train.csv", "three slashes"),
        ("csv:http://[::1/x.csv", "is no URL: Invalid IPv6 URL"),
        ("csv:http://host:99999/x.csv", "is no URL: Port out of range"),
        ("csv:http:///x.csv", "names no server"),
        ("csv:https://host/x.csv?X-Amz-Signature=abc", "has X-Amz-Signature in its URL"),
        ("csv:file:///nowhere/train.csv", "does not exist"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(tmp_path, source, message):
    with pytest.raises(RegraftError, match=message) as caught:
        imports.check_remotes([source], tmp_path)
    assert "secret" not in str(caught.value)


def test_a_remote_named_in_the_project_needs_to_be_defined_there(project, server):
    change = f"csv:{server.url('/data/train.csv')}"
    project.params.write_text(project.params.read_text().replace(change, "csv:remote://store/train.csv"))
    with pytest.raises(DataError, match="store"):
        pipeline.plan(project.root)
    with Repo(str(project.root)) as repo, repo.config.edit("repo") as config:
        config["remote"]["store"] = {"url": server.url("/data")}
    assert why(project)
    assert download(project)
    assert (project.raw / "train.csv").read_text() == TABLE


def test_a_file_url_is_a_path(tmp_path):
    (tmp_path / "my data.csv").write_text(TABLE)
    found = sources.parse(f"csv:file://{tmp_path}/my%20data.csv", tmp_path / "project")
    assert (found.path, found.url) == (tmp_path / "my data.csv", None)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a/b.tar.gz?download=1", "b.tar.gz"),
        ("https://host/my%20data.csv", "my-data.csv"),
        ("https://host/../.dvc", "dvc"),
        ("s3://bucket", "bucket"),
        ("https://host/get?file=x.csv", "get"),
    ],
)
def test_a_copy_is_called_as_in_the_url_and_lies_in_a_folder_of_its_own(tmp_path, url, name):
    copy = remotes.copy_of(url, tmp_path)
    assert copy.name == name
    assert copy.parent.parent == tmp_path / "imports"
    assert copy.parent != remotes.copy_of(f"{url}#2", tmp_path).parent


def test_the_version_of_a_folder_changes_with_any_of_its_files(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(b"one")
    monkeypatch.setattr(imports, "parse_external_url", lambda url, *_: (localfs, url))
    before = imports.remote_version(str(folder), None)
    assert before["files"] == 1
    assert imports.remote_version(str(folder), None) == before
    (folder / "cat" / "1.png").write_bytes(b"other")
    assert imports.remote_version(str(folder), None) != before
