"""A new project: a folder with a copy of the commented settings and of the graph."""

from collections.abc import Sequence
from contextlib import ExitStack
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from regraft.backbones import catalogue
from regraft.data import labels, sources, tables
from regraft.data.fetch import common_kind
from regraft.errors import DataError, RegraftError
from regraft.files import write_text
from regraft.paths import REPOSITORY, Paths
from regraft.settings import check_settings

_READ_AT_ONCE_BYTES = 10_000_000  # of tables, which takes about a second


def create(
    directory: Path,
    *,
    source: str | Sequence[str],
    name: str,
    kind: str = "auto",
    task: str = "auto",
    targets: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> Paths:
    """Write params.yaml and dvc.yaml for a model called `name`, learnt from `source`, into `directory`.

    Args:
        directory: The project's folder; made if it does not exist.
        source: As in params.yaml, one or several; a relative path counts from the current folder.
        name: The model's name in the registry.
        kind: image, text, audio, or auto to read it off the source.
        task: classification, multilabel, regression, or auto to read it off the target's values.
        targets: Column of the target, or several; none guesses one.
        texts: Column of the text, or those of the two texts of a pair; none guesses one.

    Raises:
        RegraftError: If `directory` holds a project already, or source, name, kind or task are not valid. Nothing is
            written.
        OSError: If the disk is full or cannot be written to; there is no project then.
    """
    paths = Paths(directory.resolve())
    if paths.root.exists() and not paths.root.is_dir():
        raise RegraftError(f"{paths.root} is a file; choose another name for the project's folder.")
    taken = [path.name for path in (paths.params, paths.graph, paths.root / ".dvc") if path.exists()]
    if taken:
        raise RegraftError(
            f"{paths.root} holds a project already ({', '.join(taken)}); choose another folder or edit its params.yaml."
        )
    if kind not in ("auto", "image", "text", "audio"):
        raise RegraftError(f"--kind must be image, text, audio or auto, got {kind!r}.")
    given = [source] if isinstance(source, str) else list(source)
    found = list(sources.parse_all(given, Path.cwd(), paths.root).values())
    if kind == "auto":
        kind = common_kind({one.text: one for one in found})
    else:
        for one in found:
            _require_kind(one, kind)

    yaml = YAML()
    yaml.width = 200
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    settings = yaml.load((REPOSITORY / "params.yaml").read_text("utf-8"))
    settings["name"] = name
    whole = [_with_whole_path(one) for one in found]
    settings["download"]["source"] = whole[0] if len(whole) == 1 else _in_one_line(whole)
    settings["preprocess"]["kind"] = kind
    settings["preprocess"]["task"] = task
    if targets:
        settings["preprocess"]["target_column"] = targets[0] if len(targets) == 1 else list(targets)
    if texts:
        settings["preprocess"]["text_column"] = texts[0] if len(texts) == 1 else _in_one_line(texts)
    settings["backbone"]["name"] = catalogue.names(kind)[0]
    check_settings(settings, "the new project")
    for one in found:
        _require_columns(one, texts, targets)
    paths.root.mkdir(parents=True, exist_ok=True)
    for file_name, lines in (
        (".gitignore", _made_by_runs(paths)),
        (".dvcignore", (REPOSITORY / ".dvcignore").read_text("utf-8").splitlines()),
    ):
        _add_lines(paths.root / file_name, lines)
    commented = StringIO()
    yaml.dump(settings, commented)
    with ExitStack() as undo:  # half a project would be taken for a whole one
        for file, text in (
            (paths.graph, (REPOSITORY / "dvc.yaml").read_text("utf-8")),
            (paths.params, commented.getvalue()),
        ):
            undo.callback(file.unlink, missing_ok=True)
            write_text(file, text)
        undo.pop_all()
    return paths


def _require_kind(source: sources.Source, kind: str) -> None:
    """Raise unless a source that lies here holds data of `kind`.

    Raises:
        DataError: If it holds other data, or none.
    """
    if source.url is None and source.scheme != "tfds" and (held := sources.guess_kind(source)) != kind:
        raise DataError(f"--kind is {kind!r}, and source {source.text!r} holds {held} data; leave --kind out.")


def _require_columns(source: sources.Source, texts: Sequence[str], targets: Sequence[str]) -> None:
    """Raise if the tables of a source that lies here cannot be used; large ones and archives are left to the run.

    Raises:
        DataError: See `tables.read_table`, `tables.choose_columns` and `labels.read_labels`.
    """
    files = source.listing.files
    if source.scheme == "folder":
        labels.refuse_text(texts)
    if source.scheme not in ("csv", "folder") or source.url is not None or source.is_archive:
        return
    held = [name for name in files if sources.is_table_name(name)] if source.scheme == "folder" else list(files)
    if sum(files[name].st_size for name in held) > _READ_AT_ONCE_BYTES:
        return
    if source.scheme == "folder":
        if labels.read_labels(source.path, list(files), targets) is None:
            labels.refuse_target(targets)
        return
    for name in held:
        table = tables.read_table(source.file(name))
        if len(files) == 1 or sources.split_of(Path(name).stem) == "train":
            rows = [fields for _, fields in table.rows if len(fields) == len(table.header)]
            tables.choose_all_columns(table.name, table.header, rows, texts, targets)


def _with_whole_path(source: sources.Source) -> str:
    """Return a source as it goes into params.yaml: not counting from the folder in which it was named."""
    scheme = source.text.partition(":")[0]
    return source.text if scheme in ("package", "tfds") or source.url else f"{scheme}:{source.path}"


def _in_one_line(texts: Sequence[str]) -> CommentedSeq:
    """Return a list that is written before the comment on its setting, in the quotes that DVC wants inside `[...]`."""
    items = CommentedSeq(SingleQuotedScalarString(text) for text in texts)
    items.fa.set_flow_style()
    return items


def _add_lines(file: Path, lines: list[str]) -> None:
    """Append to `file` those of `lines` that it lacks."""
    present = file.read_text("utf-8").splitlines() if file.exists() else []
    write_text(file, "".join(f"{line}\n" for line in dict.fromkeys([*present, *lines])))


def _made_by_runs(paths: Paths) -> list[str]:
    """Return what runs make and git should not hold."""
    folders = [paths.raw.parent, paths.features, paths.model.parent, paths.reports, paths.state, paths.scratch]
    return [f"/{folder.relative_to(paths.root)}/" for folder in folders] + ["/mlartifacts/", "/mlflow.db"]
