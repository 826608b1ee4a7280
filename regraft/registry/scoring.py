"""Batch scoring: a registered model answers a folder or a table, part by part, into Parquet files.

Each part is written whole or not at all, so a run that was interrupted goes on with the first part that is missing.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.data import pairs, sources, tables
from regraft.errors import DataError, RegraftError
from regraft.files import read_json, write_json
from regraft.locking import exclusive
from regraft.progress import Progress
from regraft.registry.predict import Input, OpenModel

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

PART_ROWS = 1024
CHUNK_ROWS = 256  # read while those before them are answered
MANIFEST, LOCK = "_score.json", "_lock"  # readers of Parquet pass over names that begin so
FILE_NAMES = ("file", "path", "filename", "image", "audio", "recording")
# Of these TensorFlow reads whole files as they are; whatever does not work out after all is looked at one by one.
AS_THEY_ARE = {"image": (".jpg", ".jpeg", ".png", ".gif", ".bmp"), "audio": (".wav",)}


@dataclass(frozen=True)
class Inputs:
    """What is to be scored.

    Attributes:
        names: Of each row: its path within the folder, or its text.
        givens: What `predict.OpenModel.read` takes: a path or a text.
        fingerprint: Changes when the inputs do.
        left_out: How many files are of another kind than the model takes.
        are_texts: Whether `givens` are texts as they are, whatever they look like, and never names of files.
    """

    names: Sequence[str]
    givens: Sequence[str]
    fingerprint: str
    left_out: int = 0
    are_texts: bool = False


def find_inputs(source: Path, model: OpenModel, column: str | None = None) -> Inputs:
    """Return what `source` holds for `model`.

    Args:
        source: A folder, with files of the model's kind at any depth (for texts .txt files); or a table (.csv, .tsv,
            .jsonl, .parquet) with texts, or with paths of files, which count from the table's folder. A table is parsed
            as a whole, files are read when their turn comes.
        model: Says what it takes.
        column: Of the table; None: the one named as the model has it, or by a usual name (`text`, `message`, ...).

    Raises:
        DataError: If there is nothing to score, or no such column.
    """
    if source.is_dir():
        return _files_in(source, model.kind)
    if not source.is_file():
        raise DataError(
            f"{source} is neither a folder nor a table. Name a folder of files, or a .csv, .jsonl, .parquet."
        )
    table = tables.read_table(source)
    columns = _columns_for(model, table.header, column, source.name)
    places = [table.header.index(name) for name in columns]
    broken = [line for line, fields in table.rows if len(fields) != len(table.header)]
    if broken:
        raise DataError(
            f"{source.name}: {len(broken)} row(s) do not have {len(table.header)} fields as the header does, first in "
            f"line {broken[0]}. Mend the table; an answer could not be told to belong to its row."
        )
    cells = [[fields[place] for place in places] for _, fields in table.rows]
    try:
        names = [pairs.join(row) if len(row) == 2 else row[0] for row in cells]
    except ValueError as error:
        raise DataError(f"{source.name}: a text {error}. Mend the table.") from None
    digest = hashlib.sha256(source.read_bytes() + json.dumps(columns).encode())
    if model.kind == "text":
        return Inputs(names, names, digest.hexdigest(), are_texts=True)
    files = [source.parent / name for name in names]
    for file in files:  # that change, or come back, are not the same inputs
        digest.update(json.dumps(_state_of(file)).encode())
    return Inputs(names, list(map(str, files)), digest.hexdigest())


def _state_of(file: Path) -> list[int]:
    """Return size and time of a file; nothing of one that cannot be looked at."""
    try:
        said = file.stat()
    except (OSError, ValueError):  # a name that holds a NUL is none
        return []
    return [said.st_size, said.st_mtime_ns]


def _files_in(folder: Path, kind: str) -> Inputs:
    is_fit: Callable[[str], bool] = {
        "image": sources.is_image_name,
        "audio": sources.is_audio_name,
        "text": lambda name: name.lower().endswith(".txt"),
    }[kind]
    listing = sources.list_files(folder)
    files = {name: facts for name, facts in listing.files.items() if is_fit(name)}
    if not files:
        raise DataError(
            f"{folder} holds nothing for a model of {kind}: found {sources.describe_suffixes(list(listing.files))}."
            + (" Texts come from a table, too: name the file." if kind == "text" else "")
        )
    known = [(name, facts.st_size, facts.st_mtime_ns) for name, facts in files.items()]
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    left_out = len(listing.files) - len(files) + len(listing.skipped)
    return Inputs(list(files), [str(folder / name) for name in files], digest, left_out)


def _columns_for(model: OpenModel, header: Sequence[str], column: str | None, name: str) -> list[str]:
    """Return the columns of a table that hold the input: two for a model of pairs, else one."""
    if len(model.columns) == 2:
        wanted = list(model.columns)
        if column is not None:
            raise DataError(
                f"this model takes two texts, from the columns {tables.quoted(wanted)}; leave out --column."
            )
        missing = [one for one in wanted if one not in header]
    else:
        usual = tables.TEXT_NAMES if model.kind == "text" else FILE_NAMES
        by_name = {one.lower(): one for one in reversed(header)}
        found = column or next((by_name[one] for one in (model.kind, *usual) if one in by_name), None)
        wanted = [] if found is None else [found]
        missing = [one for one in wanted if one not in header]
        if not wanted:
            raise DataError(
                f"{name} has no column that looks like {model.kind} input; its columns are {tables.quoted(header)}. "
                "Name the one to use with --column."
            )
    if missing:
        raise DataError(f"{name} has no column {tables.quoted(missing)}; its columns are {tables.quoted(header)}.")
    return wanted


def score(model: OpenModel, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Write the answers of `model` to `inputs` into the folder `out`, and return what came of it, ready for JSON.

    `out` gets part-000000.parquet, part-000001.parquet, ... of `PART_ROWS` rows each, in the order of `inputs`, which
    pandas, DuckDB and Spark read as one table: `row` (from 0), `input`, the model's answer as
    `consumer_model.RawInputModel.predict` has it, `error` (why there is no answer, else null), `model`, `version`. An
    answer that is itself called like one of these is called `NAME answer`. Probabilities by label are a struct.

    Returns:
        The manifest, which `out`/_score.json holds as well: model, version, source (a fingerprint), rows, failed,
        left_out, part_rows, and finished.

    Raises:
        DataError: If `out` holds something else, or is no folder.
        ResourceError: If another process is scoring into it.
        RegraftError: If not one input could be answered.
    """
    if out.exists() and (not out.is_dir() or (not (out / MANIFEST).exists() and any(map(_is_foreign, out.iterdir())))):
        raise DataError(
            f"{out} is no empty folder. Answers go into a new or an empty one, or go on where they stopped."
        )
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out / LOCK, out):
        return _score(model, inputs, out)


def _is_foreign(path: Path) -> bool:
    """Return whether a file in a folder of answers is not one that was begun there."""
    return not path.name.startswith("_")


def _score(model: OpenModel, inputs: Inputs, out: Path) -> dict[str, Any]:
    import pyarrow.parquet

    about = {"model": model.name, "version": model.version, "source": inputs.fingerprint, "part_rows": PART_ROWS}
    _claim(out / MANIFEST, about)
    parts = [
        range(start, min(start + PART_ROWS, len(inputs.names))) for start in range(0, len(inputs.names), PART_ROWS)
    ]
    files = [out / f"part-{number:06d}.parquet" for number in range(len(parts))]
    missing = [(file, rows) for file, rows in zip(files, parts, strict=True) if not file.exists()]
    done = len(inputs.names) - sum(len(rows) for _, rows in missing)
    if done:
        log.info("%d of %d rows were scored before", done, len(inputs.names))
    schema = _schema(model)
    progress = Progress(
        log, "scoring", len(inputs.names) - done, {"text": "texts", "image": "images"}.get(model.kind, "recordings")
    )
    for file, rows in missing:
        answered = _answer(model, inputs, rows, progress)
        table = pyarrow.Table.from_pylist(
            [{"model": model.name, "version": model.version, **row} for row in answered], schema
        )
        unfinished = out / f"_{file.name}"
        pyarrow.parquet.write_table(table, unfinished)
        unfinished.replace(file)
    failed = sum(
        table.num_rows - table["error"].null_count
        for table in (pyarrow.parquet.read_table(file, columns=["error"]) for file in files)
    )
    if failed == len(inputs.names):
        first = pyarrow.parquet.read_table(files[0], columns=["error"])["error"][0].as_py()
        for file in (*files, out / MANIFEST):  # so that the next attempt, once that is mended, begins anew
            file.unlink()
        raise RegraftError(f"none of the {failed} inputs could be answered, and nothing was kept. The first: {first}")
    outcome = {**about, "rows": len(inputs.names), "failed": failed, "left_out": inputs.left_out, "finished": True}
    write_json(out / MANIFEST, outcome)
    return outcome


def _claim(manifest: Path, about: dict[str, Any]) -> None:
    """Note what the answers beside `manifest` are, or make sure that it says the same.

    Raises:
        DataError: If it says something else.
    """
    if not manifest.exists():
        write_json(manifest, {**about, "finished": False})
        return
    held = read_json(manifest)
    if differing := [name for name in about if held.get(name) != about[name]]:
        raise DataError(
            f"{manifest.parent} holds answers of {held.get('model')} version {held.get('version')} that differ in "
            f"{', '.join(differing)} from what is asked now. Name another folder, or delete that one."
        )


def _schema(model: OpenModel) -> "pa.Schema":
    """Return the columns of a part, found by having the model answer its own example."""
    import pyarrow as pa

    example = model.loaded.input_example
    answer = pa.Table.from_pylist([_as_columns(row) for row in model.loaded.predict(example).to_dict("records")[:1]])
    # Of an example without a label, the list does not tell what others hold.
    names = [
        field.with_type(pa.list_(pa.string())) if pa.types.is_list(field.type) else field for field in answer.schema
    ]
    before = [pa.field("row", pa.int64()), pa.field("input", pa.string())]
    after = [pa.field("error", pa.string()), pa.field("model", pa.string()), pa.field("version", pa.int64())]
    return pa.schema([*before, *names, *after])


def column_of(answer: str) -> str:
    """Return what the answer of that name is called in the output, whose own columns keep their names."""
    return f"{answer} answer" if answer in ("row", "input", "error", "model", "version") else answer


def _as_columns(answer: dict[str, Any]) -> dict[str, Any]:
    return {column_of(str(name)): cell for name, cell in answer.items()}


def _answer(model: OpenModel, inputs: Inputs, rows: range, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield a row of the output for each of `rows`; the next chunk is read while one is answered."""
    chunks = [rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS)]

    def read(chunk: range) -> list[Input | DataError]:
        return [_read(model, inputs.givens[row], is_text=inputs.are_texts) for row in chunk]

    with ThreadPoolExecutor(1, "reading") as pool:
        ahead = pool.submit(read, chunks[0])
        for number, chunk in enumerate(chunks):
            contents = ahead.result()
            if number + 1 < len(chunks):
                ahead = pool.submit(read, chunks[number + 1])
            givens = [inputs.givens[row] for row in chunk]
            for row, answer in zip(chunk, _answers(model, givens, contents), strict=True):
                yield {"row": row, "input": inputs.names[row], **answer}
            progress.advance(len(chunk))


def _read(model: OpenModel, given: str, *, is_text: bool) -> Input | DataError:
    """Return what the model is given, or why that cannot be read."""
    if is_text and len(model.columns) == 1:
        return given
    try:
        if given.lower().endswith(AS_THEY_ARE.get(model.kind, ())) and (content := Path(given).read_bytes()):
            return content
        return model.read(given)
    except DataError as error:
        return error
    except OSError as error:
        return DataError(f"{given} cannot be read: {error.strerror}.")
    except ValueError as error:  # a name with a NUL in it
        return DataError(f"{given!r} cannot be read: {error}.")


def _answers(model: OpenModel, givens: Sequence[str], contents: Sequence[Input | DataError]) -> list[dict[str, Any]]:
    """Return an answer or an error for each input; if they cannot be answered together, one by one."""
    readable = [content for content in contents if not isinstance(content, DataError)]
    try:
        answered = iter(model.answer(readable).to_dict("records") if readable else [])
    except DataError as error:
        if len(givens) > 1:
            return [_answers(model, [given], [content])[0] for given, content in zip(givens, contents, strict=True)]
        return [_second_try(model, givens[0], error)]
    return [
        {"error": str(content)} if isinstance(content, DataError) else _as_columns(next(answered))
        for content in contents
    ]


def _second_try(model: OpenModel, given: str, error: Exception) -> dict[str, Any]:
    """Return the answer to a file that TensorFlow does not read as it is, converted if that helps."""
    try:
        content = model.read(given)
    except DataError as unreadable:
        return {"error": str(unreadable)}
    try:
        [answer] = model.answer([content]).to_dict("records")
    except DataError:
        return {"error": str(error)}
    return _as_columns(answer)
