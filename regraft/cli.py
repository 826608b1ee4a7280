"""The command `regraft`. The one module that may call every layer; heavy imports wait until a command needs them."""

import errno
import json
import logging
import os
import shlex
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regraft.errors import DISK_ERRORS, INTERRUPTED, TERMINATED, RegraftError, ResourceError
from regraft.paths import Paths

if TYPE_CHECKING:
    from regraft.settings import Settings

app = typer.Typer(
    name="regraft",
    help="Keep transfer-learned models fresh: data and a pretrained backbone in, a registered model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data = typer.Typer(name="data", help="Look at a project's data.", no_args_is_help=True)
app.add_typer(data)
backbones = typer.Typer(name="backbones", help="List the backbones there are, or add one.", invoke_without_command=True)
app.add_typer(backbones)


def _folder(text: str) -> Path:
    """Return the folder a person means, where no shell has put their home for `~` (as in `--root=~/project`)."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # `~somebody` who has no home folder
        raise typer.BadParameter(str(error)) from None


Root = Annotated[
    Path,
    typer.Option("--root", metavar="DIR", parser=_folder, help="The project's folder.", show_default="this folder"),
]
RegisteredModel = Annotated[
    str, typer.Argument(metavar="NAME[@ALIAS]", help="A registered model; the alias is `champion` unless given.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON on standard output.")]
HERE = Path()
_PAIRS_SHOWN = 50


def _project(root: Path) -> tuple[Paths, "Settings"]:
    """Return the paths and settings of the project in `root`."""
    from regraft.settings import load_settings

    paths = Paths(root.resolve())
    return paths, load_settings(paths.params)


def _show_log() -> None:
    """Say on standard error what is being done."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def main() -> None:
    """Run the command line; an error a person can act on prints its message, and `--debug` its traceback too."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up lines are not for people
    debug = "--debug" in sys.argv[1:]
    if not debug:
        sys.excepthook = _say_briefly
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    command = typer.main.get_command(app)  # calling `app` itself would put Typer's printer of tracebacks back in place
    try:
        command(arguments)
    except RegraftError as error:
        if debug:
            raise
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED if sys.stderr.isatty() else None)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug or (error.errno not in DISK_ERRORS and error.filename is None):
            raise
        if error.errno not in DISK_ERRORS:  # a file or folder that a person named, or may put right
            typer.secho(f"error: {error.filename}: {error.strerror}. Correct the path or its permissions.", err=True)
            sys.exit(RegraftError.exit_code)
        remedy = "Mount it for writing" if error.errno == errno.EROFS else "Make room or check the disk"
        typer.secho(f"error: the disk gave out: {error}. {remedy}; then run again.", err=True)
        sys.exit(ResourceError.exit_code)
    except SystemExit as end:
        if end.code in (INTERRUPTED, TERMINATED):
            how = "interrupted" if end.code == INTERRUPTED else "stopped"
            typer.secho(f"{how}; run again to go on from the last checkpoint", err=True)
        raise


def _say_briefly(kind: type[BaseException], error: BaseException, _traceback: Any) -> None:
    """Print an error nobody foresaw in one line; Python itself then ends the process with exit code 1."""
    typer.secho(f"error: unexpected {kind.__name__}: {error}\nRun again with --debug for the traceback.", err=True)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and Prefect's own messages.")] = False,
) -> None:
    """Hold the options every command takes."""


@app.command()
def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", parser=_folder, help="Folder to make; may exist if it holds no project.")
    ],
    source: Annotated[
        list[str],
        typer.Option(
            help="folder:DIR, csv:FILE, csv:DIR (or an archive of one), tfds:NAME, package:mnist5k; may be repeated."
        ),
    ],
    name: Annotated[str, typer.Option(help="The model's name in the registry.")],
    kind: Annotated[str, typer.Option(help="image, text, audio, or auto: read off the source.")] = "auto",
    *,
    text: Annotated[
        list[str] | None, typer.Option(help="Column of the text, or twice: those of the two texts of a pair.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Column of the target; may be repeated.")] = None,
    task: Annotated[
        str, typer.Option(help="classification, multilabel, regression, or auto: read off the target's values.")
    ] = "auto",
) -> None:
    """Make a new project: a folder with its own settings, graph, data and models."""
    from flows import imports, repository
    from regraft.project import create
    from regraft.quiet import without_noise

    imports.check_remotes(source, directory.resolve())
    with without_noise():
        paths = create(
            directory, source=source, name=name, kind=kind, task=task, targets=target or (), texts=text or ()
        )
    with ExitStack() as undo:
        for file in (paths.params, paths.graph):
            undo.callback(file.unlink)
        repository.start_project(paths.root)
        undo.pop_all()
    typer.echo(
        f"made {paths.root}\nsettings: {paths.params}\nnext:     regraft run --root {shlex.quote(str(directory))}"
    )


@app.command()
def plan(root: Root = HERE, as_json: AsJson = False) -> None:
    """Show which stages are stale, and why, without running anything."""
    from flows import pipeline
    from regraft import durations
    from regraft.locking import is_running

    paths, settings = _project(root)
    running = is_running(paths)
    if running:
        typer.echo("a run is at work; this is the plan with the code and the source as it found them", err=True)
    elsewhere = settings.placement.mode == "pools"
    stages = pipeline.plan(paths.root, refresh=not running, data_elsewhere=elsewhere)
    took = durations.read(paths)
    if as_json:
        _print_json(
            {
                "stages": [
                    {
                        "name": s.name,
                        "stale": s.stale,
                        "why": list(s.why),
                        "pool": s.pool,
                        "estimate_s": took.get(s.name),
                    }
                    for s in stages
                ]
            }
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("stage", "state", "pool", "took", "why"):
        table.add_column(heading, overflow="fold")
    for stage in stages:
        shown = [*stage.why[:6], *([f"and {len(stage.why) - 6} more (--json lists all)"] if len(stage.why) > 6 else [])]
        state = "[yellow]stale[/]" if stage.stale else "[green]clean[/]"
        spent = f"{took[stage.name]:.0f} s" if stage.name in took else ""
        table.add_row(stage.name, state, stage.pool, spent, "\n".join(shown).replace("[", r"\["))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    stale = [stage.name for stage in stages if stage.stale]
    known = [took[name] for name in stale if name in took]
    if known:
        besides = f", and {len(stale) - len(known)} stage(s) that never ran" if len(known) < len(stale) else ""
        typer.echo(f"what is stale took {sum(known):.0f} s last time{besides}")


@app.command()
def logs(
    stage: Annotated[str | None, typer.Argument(help="Only what this stage said.")] = None, root: Root = HERE
) -> None:
    """Show what the last run of the project said: from the Prefect server in use, or from the log files here."""
    import flows.logs
    from regraft.state import server

    paths, _ = _project(root)
    address = os.environ.get("PREFECT_API_URL") or server("prefect")
    for line in flows.logs.of_server(paths, address, stage) if address else flows.logs.of_project(paths, stage):
        typer.echo(line)


@app.command()
def run(
    root: Root = HERE,
    force: Annotated[
        list[str] | None, typer.Option(help="Run this stage even if it is clean; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the model up to date: run what is stale, register the result, promote it if it deserves it."""
    from flows import pipeline
    from regraft.fingerprint import release_fingerprint
    from regraft.locking import project_lock

    paths, settings = _project(root)
    forced = tuple(force or ())
    elsewhere = settings.placement.mode == "pools"
    with project_lock(paths):
        if not any(stage.stale for stage in pipeline.plan(paths.root, force=forced, data_elsewhere=elsewhere)):
            from regraft.registry.published import is_published
            from regraft.registry.register import read_publication

            if is_published(paths, settings, release_fingerprint(paths)):
                outcome = {"stages_run": [], "stages_restored": [], "publication": read_publication(paths).as_json()}
                if not elsewhere:  # reports that lie here are then those of the model
                    outcome |= {"test": _test_number(paths)}
                _tell_outcome(paths, outcome, elsewhere=elsewhere, as_json=as_json)
                return
        from regraft.console import run_flow

        outcome = run_flow(paths.root, forced, debug="--debug" in sys.argv)
    _tell_outcome(paths, outcome, elsewhere=elsewhere, as_json=as_json)


@app.command("rank")
def rank_backbones(root: Root = HERE, as_json: AsJson = False) -> None:
    """Show how well each backbone that is at hand would suit the data, by its frozen features; train nothing.

    Brings the prepared data up to date first. Candidates are those of `backbone.candidates` in params.yaml, or all that
    need no network here.
    """
    from flows import pipeline
    from regraft.locking import project_lock
    from regraft.quiet import without_noise

    paths, settings = _project(root)
    with project_lock(paths):
        pipeline.run_before(paths.root, "choose", on_line=lambda line: typer.echo(line, err=True))
    _show_log()
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        with without_noise():
            from regraft.ranking.contest import FIRST_ROUND, Contest

            contest = Contest(settings.backbone, settings.embed, settings.seed, paths, scratch=Path(folder))
        ranked = contest.rank(contest.candidates, FIRST_ROUND)
    objective = contest.objective
    if as_json:
        rows = [row.facts() | {"seconds": row.seconds} for row in ranked]
        _print_json({"loss": objective.loss_name, "measure": objective.measure_name, "ranked": rows})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    measured = (f"held-out {objective.loss_name}", objective.measure_name, "LogME", "H-score")
    for heading in ("backbone", "parameters", *measured, "s"):
        table.add_column(heading, justify="left" if heading == "backbone" else "right")
    for row in ranked:
        score = "" if row.h_score is None else f"{row.h_score:.2f}"
        numbers = (f"{row.parameters / 1e6:.1f} M", f"{row.held_out_loss:.4f}", f"{row.accuracy:.4f}")
        table.add_row(row.candidate.label, *numbers, f"{row.log_maximum_evidence:.4f}", score, f"{row.seconds:.0f}")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    typer.echo(f"on {ranked[0].examples} training examples, judged on held-out ones by a probe on frozen features")


@backbones.callback()
def list_backbones(
    context: typer.Context,
    *,
    root: Root = HERE,
    kind: Annotated[str | None, typer.Option(help="Of data: image, text or audio.")] = None,
    max_parameters: Annotated[int | None, typer.Option(min=1, help="Leave out larger ones.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Leave out those that need a network.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the backbones there are, and how each can be had here; `add` adds one."""
    if context.invoked_subcommand is not None:
        return
    from regraft.backbones import listing

    if kind not in (None, "image", "text", "audio"):
        raise typer.BadParameter(f"must be image, text or audio, got {kind!r}.", param_hint="--kind")
    paths = Paths(root.resolve())
    rows = listing.rows(paths.backbones, paths.root, kind=kind, most=max_parameters, at_hand_only=offline)
    if as_json:
        _print_json({"backbones": [row.facts() for row in rows]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    numbers = ("parameters", "GFLOPs", "takes")
    for heading in ("backbone", "kind", *numbers, "trained on", "licence", "here"):
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    for row in rows:
        here = f"[green]{row.at_hand}[/]" if row.at_hand else f"[yellow]needs {row.needs}[/]"
        size = (f"{row.parameters / 1e6:.1f} M", f"{row.flops / 1e9:.2f}" if row.flops else "", row.takes)
        table.add_row(row.name, row.kind, *size, row.source_dataset, row.licence, here)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@backbones.command("add")
def add_backbone(
    name: Annotated[str, typer.Argument(metavar="NAME", help="In the catalogue, or a new one for a preset of yours.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="DIR", parser=_folder, help="A KerasHub preset folder.", show_default="download it now"
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of another that has the name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify a backbone and keep it for all your projects: then it needs no network, and goes by its name."""
    from regraft.quiet import without_noise

    with without_noise():
        from regraft.backbones.add import add

        added = add(name, source, replace=replace)
    card = added.card
    if as_json:
        facts = {"name": name, "said": added.said, "folder": added.folder and str(added.folder)}
        _print_json(facts | ({"weights_sha256": card.weights_sha256, "kind": card.kind} if card else {}))
        return
    typer.echo(added.said + (f" ({added.folder})" if added.folder else ""))
    if card:
        typer.echo(f"{card.kind}, {card.parameters:,} parameters, weights sha256 {card.weights_sha256}")


@app.command()
def models(root: Root = HERE, as_json: AsJson = False) -> None:
    """List the registered versions with their aliases and key metrics."""
    from regraft.measures import ALL_METRICS, SHOWN, words
    from regraft.registry.versions import list_models

    paths, settings = _project(root)
    rows = list_models(paths, settings)
    if as_json:
        _print_json({"models": rows})
        return
    if not rows:
        typer.echo("no model is registered yet; `regraft run` makes one")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [name for name in ALL_METRICS if name in SHOWN and any(name in row["metrics"] for row in rows)]
    for heading in ("model", "version", "aliases", *map(words, shown), "shipped", "created"):
        table.add_column(heading)
    for row in rows:
        numbers = [f"{row['metrics'][name]:.4f}" if name in row["metrics"] else "" for name in shown]
        table.add_row(
            row["name"], str(row["version"]), ", ".join(row["aliases"]), *numbers, row["shipped"], row["created"]
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="NAME/VERSION", help="A version, or NAME@challenger.")],
    *,
    despite_gates: Annotated[bool, typer.Option("--despite-gates", help="Even if a gate refused it.")] = False,
    root: Root = HERE,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion by hand; the champion until now becomes `previous`."""
    from regraft.registry.aliases import promote as promote_by_hand

    paths, settings = _project(root)
    _tell_move(promote_by_hand(paths, settings, model, despite_gates=despite_gates), as_json=as_json)


@app.command()
def rollback(root: Root = HERE, as_json: AsJson = False) -> None:
    """Make the champion's predecessor champion again; the two change places."""
    from regraft.registry.aliases import rollback as roll_back

    paths, settings = _project(root)
    _tell_move(roll_back(paths, settings), as_json=as_json)


def _tell_move(outcome: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print_json(outcome)
        return
    before = f", version {outcome['previous']} is `previous`" if outcome["previous"] is not None else ""
    verb = "is now" if outcome["moved"] else "was already"
    typer.echo(f"version {outcome['champion']} of {outcome['name']} {verb} the champion{before}")


@app.command()
def rebuild(
    model: RegisteredModel,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", parser=_folder, help="Keep it there, as a project of its own.")
    ] = None,
    root: Root = HERE,
    as_json: AsJson = False,
) -> None:
    """Make a registered model again from its code, data and settings, and compare the test numbers."""
    from flows.rebuild import rebuild as make_again

    paths, settings = _project(root)
    outcome = make_again(paths, settings, model, folder, on_line=lambda line: typer.echo(line, err=True))
    if as_json:
        _print_json(outcome)
        return
    parts = ("weights", "export", "answers")
    bytes_of = ", ".join(f"{part} {'equal' if outcome[f'same_{part}'] else 'NOT equal'}" for part in parts)
    typer.echo(
        f"version {outcome['version']} of {outcome['name']}, made again with {outcome['code']}: test "
        f"{outcome['metric']} {outcome['now']:.4f}, as registered; to the byte: {bytes_of}"
    )


@app.command()
def predict(
    model: RegisteredModel,
    inputs: Annotated[
        list[str], typer.Argument(metavar="FILE_OR_TEXT...", help="Image or audio files, or texts; pairs as 'A ||| B'.")
    ],
    root: Root = HERE,
    as_json: AsJson = False,
) -> None:
    """Predict labels or values for files or texts with a registered model."""
    from regraft.quiet import without_noise

    paths, settings = _project(root)
    with without_noise():
        from regraft.registry.predict import predict as predict_with

        results = predict_with(paths, settings, model, inputs)
    if as_json:
        _print_json({"predictions": results})
        return
    for result in results:
        typer.echo(f"{_say_answer(result)}\t{result['input']}")


def _say_answer(result: dict[str, Any]) -> str:
    """Return a model's answer in a line: a class with its probability, labels with theirs, or values."""
    if "label" in result and "probabilities" in result:
        return f"{result['label']}\t{result['probability']:.4f}"
    if "probabilities" in result:
        held = [f"{name} {result['probabilities'][name]:.4f}" for name in result["labels"]]
        return ", ".join(held) or "no label"
    values = {name: value for name, value in result.items() if name != "input"}
    return "\t".join(f"{value:.6g}" if name == "value" else f"{name} {value:.6g}" for name, value in values.items())


@app.command()
def explain(
    model: RegisteredModel,
    given: Annotated[str, typer.Argument(metavar="FILE_OR_TEXT", help="As for `predict`.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", parser=_folder, help="Folder for the page.")] = Path(
        "explanation"
    ),
    root: Root = HERE,
    as_json: AsJson = False,
) -> None:
    """Show what in a file or a text speaks for a registered model's answer, and the training examples most like it."""
    from flows.explain import explain as explain_one
    from regraft.quiet import without_noise

    paths, settings = _project(root)
    with without_noise():
        outcome = explain_one(paths, settings, model, given, out)
    if as_json:
        _print_json(outcome)
        return
    typer.echo(f"{_say_answer(outcome['answer'])}\t{given}")
    for name, areas in outcome["methods"].items():
        chance = outcome["random"]
        typer.echo(
            f"{name}: answer {areas['deletion']:.3f} while what it names is hidden (chance {chance['deletion']:.3f}), "
            f"{areas['insertion']:.3f} while it is shown (chance {chance['insertion']:.3f})"
        )
    for one in outcome["neighbours"]:
        typer.echo(f"like {one['similarity']:.3f}  {one['answer']}  {one['name']}")
    typer.echo(f"page: {out / outcome['files'][0]}")


@app.command()
def export(
    model: RegisteredModel,
    *,
    to: Annotated[Literal["onnx", "openvino", "litert"], typer.Option("--format", help="What to write.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=_folder, help="Folder for it.", show_default="exports/ in the project"),
    ] = None,
    examples: Annotated[int, typer.Option(help="At most so many test examples prove it.", min=2)] = 1000,
    tolerance: Annotated[
        float, typer.Option(help="Accuracy (micro F1, R2) on them may fall by so much.", min=0.0, max=1.0)
    ] = 0.01,
    root: Root = HERE,
    as_json: AsJson = False,
) -> None:
    """Write a registered model's network for another runtime; proves that it answers alike and measures its speed."""
    from flows.export import export as export_one
    from regraft.quiet import without_noise

    paths, settings = _project(root)
    _show_log()
    with without_noise():
        outcome = export_one(paths, settings, model, to, out=out, examples=examples, tolerance=tolerance)
    if as_json:
        _print_json(outcome)
        return
    proof, speed = outcome["proof"], outcome["speed"]
    same = f", {proof['same_answers']:.2%} of answers the same" if "same_answers" in proof else ""
    typer.echo(
        f"{proof['measure']} on {proof['test_examples']} test examples {proof['exported']:.4f}, before "
        f"{proof['registered']:.4f}{same}, largest difference {proof['largest_difference']:.2g}"
    )
    for size, times in speed["batch_sizes"].items():
        typer.echo(
            f"batch of {size}: {times['exported_ms']:.1f} ms, before {times['registered_ms']:.1f} ms: "
            f"{times['speed_up']:.2f} times as fast"
        )
    for name, words in outcome["inputs"].items():
        typer.echo(f"takes {name}: {words}")
    typer.echo(f"written: {outcome['folder']}")


@app.command()
def score(
    model: RegisteredModel,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", parser=_folder, help="A folder of files, or a table (.csv, .jsonl, .parquet)."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=_folder, help="A folder for Parquet files.")],
    *,
    column: Annotated[str | None, typer.Option(help="Column of the table; by its name unless given.")] = None,
    root: Root = HERE,
    as_json: AsJson = False,
) -> None:
    """Answer a folder or a table with a registered model, and say whether it drifted; goes on where it stopped."""
    from flows.history import data_of_version
    from regraft.files import write_json
    from regraft.quiet import without_noise

    paths, settings = _project(root)
    _show_log()
    with without_noise():
        from regraft.registry import scored_drift, scoring
        from regraft.registry.predict import open_model
    with ExitStack() as stack:
        with without_noise():
            opened = stack.enter_context(open_model(paths, settings, model))
        inputs = scoring.find_inputs(source, opened, column)
        outcome = scoring.score(opened, inputs, out)
    try:
        with data_of_version(paths, outcome["model"], outcome["version"]) as prepared:
            outcome["drift"] = scored_drift.find_drift(paths, settings, outcome, inputs, out=out, prepared=prepared)
    except RegraftError as error:  # the answers are complete, and what they came from may be gone for good
        outcome |= {"drift": None, "drift_unknown": str(error)}
    write_json(out / scoring.MANIFEST, outcome)
    if as_json:
        _print_json(outcome)
        return
    failed = f", {outcome['failed']} of them without an answer (column error says why)" if outcome["failed"] else ""
    typer.echo(f"{outcome['rows']} rows{failed} by {outcome['model']} version {outcome['version']}: {out}")
    if outcome["left_out"]:
        typer.echo(f"left out {outcome['left_out']} file(s) of another kind")
    if outcome["drift"] is None:
        typer.echo(f"drift is not known: {outcome['drift_unknown']}")
    _say_drift(outcome["drift"] or [])


def _say_drift(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        verdict = "DRIFTED" if row["drifted"] else "no drift"
        typer.echo(f"{verdict:<8}  {row['what']}: {row['effect']} {row['size']:+.3f}, {row['test']} p = {row['p']:.2g}")


@app.command()
def doctor(root: Root = HERE, as_json: AsJson = False) -> None:
    """Check this machine and project: versions, known traps, cache links, disk, devices, servers."""
    from regraft.doctor import check

    findings = check(Paths(root.resolve()))
    if as_json:
        _print_json({"checks": findings})
    else:
        for finding in findings:
            mark = "ok  " if finding["ok"] else "FAIL"
            typer.echo(f"{mark}  {finding['check']}: {finding['found']}")
            if not finding["ok"] and finding["advice"]:
                typer.echo(f"      {finding['advice']}")
    if not all(finding["ok"] for finding in findings):
        raise typer.Exit(1)


@app.command()
def up(
    host: Annotated[
        str | None, typer.Option(help="Address that the servers listen on.", show_default="as before, or 127.0.0.1")
    ] = None,
    prefect_port: Annotated[
        int | None, typer.Option(help="Of the Prefect server.", min=1, max=65535, show_default="as before, or 4200")
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(help="Of the MLflow server.", min=1, max=65535, show_default="as before, or 5000")
    ] = None,
) -> None:
    """Start what is not up yet: a Prefect server, an MLflow server, and workers for the pools cpu and gpu."""
    import flows.services

    started = flows.services.up(host, prefect_port, mlflow_port)
    typer.echo("up; these lines make other programs use the servers, regraft does so by itself:", err=True)
    typer.echo(f"export PREFECT_API_URL={started['prefect'].address}")
    typer.echo(f"export MLFLOW_TRACKING_URI={started['mlflow'].address}")


@app.command()
def down() -> None:
    """Stop what `regraft up` started, with all that runs in it, and nothing else."""
    import flows.services

    ended = flows.services.down()
    said = ", ".join(f"{name} ({count} process{'es' * (count > 1)})" for name, count in ended.items())
    typer.echo(f"stopped {said}" if ended else "nothing was up")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show the services of `regraft up`, their pools, and the last run of each deployment."""
    import flows.services

    found = flows.services.status()
    if as_json:
        _print_json(found)
    elif not found["services"]:
        typer.echo("nothing is up; start the services with `regraft up`")
    else:
        _print_rows(
            ("service", "state", "version", "pid", "address", "log"),
            [
                (
                    row["name"],
                    "ok" if row["healthy"] else row["problem"],
                    *(str(row[key] or "") for key in ("version", "pid", "address", "log")),
                )
                for row in found["services"]
            ],
        )
        _print_rows(
            ("pool", "status", "running", "queued"),
            [tuple(str(row[key]) for key in ("name", "status", "running", "queued")) for row in found["pools"]],
        )
        _print_rows(
            ("deployment", "pool", "schedule", "next run", "last run", "started", "s"),
            [
                (
                    row["name"],
                    str(row["pool"]),
                    "; ".join(row["schedules"]),
                    row["next_start"] or ("none planned yet" if row["schedules"] else ""),
                    *(str((row["last_run"] or {}).get(key) or "") for key in ("state", "start", "seconds")),
                )
                for row in found["deployments"]
            ],
        )
    if not found["services"] or not all(row["healthy"] for row in found["services"]):
        raise typer.Exit(1)


@app.command()
def deploy(
    *,
    root: Root = HERE,
    cron: Annotated[
        str | None,
        typer.Option(help='When to retrain, as "0 3 * * *"; without it by hand only.', show_default=False),
    ] = None,
    timezone: Annotated[str, typer.Option(help="That of --cron, as Europe/Berlin.")] = "UTC",
    refuse_second: Annotated[
        bool, typer.Option("--refuse-second", help="A run that comes while one is at work is cancelled; else it waits.")
    ] = False,
    notify: Annotated[
        str | None, typer.Option(help="URL that is told when a run fails or crashes (a webhook).", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make or update the project's deployments in Prefect: retrain/NAME, with the schedule, and score/NAME."""
    from regraft.state import server

    paths, settings = _project(root)
    address = os.environ.get("PREFECT_API_URL") or server("prefect")
    if not address:
        raise RegraftError(
            "there is no Prefect server to deploy to: run `regraft up`, or set PREFECT_API_URL to yours."
        )
    import flows.deploy

    made = flows.deploy.deploy(paths, settings, address, cron, timezone, refuse_second=refuse_second, notify=notify)
    if as_json:
        _print_json(made)
        return
    when = "by hand only" if cron is None else f"on schedule {cron} {timezone}"
    typer.echo(f"deployed {' and '.join(made['deployments'])} to the pool {made['pool']}; retrains {when}")
    if made["shared"]:
        typer.echo(f"and, for all projects, {' and '.join(made['shared'])}")
    typer.echo(f"PREFECT_API_URL={address} prefect deployment run {made['deployments'][0]}")


@data.command()
def diff(
    before: Annotated[
        str | None,
        typer.Argument(
            help="A folder, NAME[@ALIAS], NAME/VERSION or a git revision.", show_default="what the champion learnt from"
        ),
    ] = None,
    after: Annotated[str | None, typer.Argument(help="The same.", show_default="the data as it is now")] = None,
    root: Root = HERE,
    as_json: AsJson = False,
) -> None:
    """Compare two versions of the prepared data: examples added, removed, relabelled, and drift."""
    from flows.history import prepared_data
    from regraft.quiet import without_noise

    paths, settings = _project(root)
    champion = f"{settings.name}@champion"
    with (
        prepared_data(paths, before or champion) as old,
        prepared_data(paths, after) as new,
        without_noise(),
    ):
        from regraft.data.drift import compare, read_version

        report = compare(read_version(old), read_version(new))
    if as_json:
        _print_json(report)
        return
    typer.echo(f"{report['before']} examples before, {report['after']} after")
    for what in ("added", "removed", "relabelled", "moved"):
        found = report[what]
        shown = [
            one if isinstance(one, str) else f"{one['name']} ({one['before']} -> {one['after']})" for one in found[:5]
        ]
        more = f", and {len(found) - 5} more (--json lists all)" if len(found) > 5 else ""
        typer.echo(f"{what}: {len(found)}{': ' if found else ''}{', '.join(shown)}{more}")
    _say_drift(report["drift"])


@data.command()
def audit(
    root: Root = HERE,
    as_json: AsJson = False,
    near: Annotated[bool, typer.Option(help="Also look for near copies.")] = True,
    against: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Also look for copies in this data: written like download.source."),
    ] = None,
) -> None:
    """Find copies: exact and near ones, with other labels, across splits.

    Reads the prepared data; without any, the source as it stands, in its own splits. Of k exact copies the first by
    name is paired with each of the k - 1 others; near copies are paired by the first of each. With --against, say
    `folder:DIR` of what a backbone was pretrained on, each example that has a copy there is listed too.
    """
    from regraft.quiet import without_noise

    with without_noise():
        from regraft.data.project_audit import audit_against, audit_project

        paths = Paths(root.resolve())
        elsewhere = audit_against(paths, against, near=near) if against else None
        found = audit_project(paths, near=near)
    if as_json:
        _print_json(found.as_json() | ({"against": elsewhere.as_json()} if elsewhere else {}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("copies", "example", "split", "label", "example", "split", "label"):
        table.add_column(heading, overflow="fold")
    for kind, pairs in (("exact", found.exact), ("near", found.near)):
        for one, other in pairs[:_PAIRS_SHOWN]:
            cells = (one.name, one.split, one.label, other.name, other.split, other.label)
            table.add_row(kind, *(cell.replace("[", r"\[") for cell in cells))
        if len(pairs) > _PAIRS_SHOWN:
            table.add_row(kind, f"and {len(pairs) - _PAIRS_SHOWN} more pairs (--json lists all)", *([""] * 5))
    for kind, matches in (("exact", elsewhere.exact), ("near", elsewhere.near)) if elsewhere else ():
        for member, name in matches[:_PAIRS_SHOWN]:
            cells = (member.name, member.split, member.label, name, "against", "")
            table.add_row(kind, *(cell.replace("[", r"\[") for cell in cells))
        if len(matches) > _PAIRS_SHOWN:
            table.add_row(kind, f"and {len(matches) - _PAIRS_SHOWN} more there (--json lists all)", *([""] * 5))
    if table.row_count:
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    across = "".join(f", {count} across {splits}" for splits, count in found.across_by_splits().items())
    typer.echo(
        f"{found.members} examples: {len(found.exact)} pair(s) of exact copies, "
        f"{f'{len(found.near)} of near ones' if near else 'near ones not looked for'}; "
        f"{len(found.conflicts)} exact and {len(found.near_conflicts)} near with different labels; "
        f"{len(found.across)} in different splits{across}"
    )
    if elsewhere:
        touched = ", ".join(f"{count} of {split}" for split, count in elsewhere.by_split().items() if count)
        typer.echo(
            f"{elsewhere.examples} examples in {elsewhere.source}"
            f"{f' ({elsewhere.unreadable} more cannot be read)' if elsewhere.unreadable else ''}: "
            f"{len(elsewhere.exact)} examples have an exact copy there, {len(elsewhere.near)} a near one"
            f"{f' ({touched})' if touched else ''}"
        )


def _test_number(paths: Paths) -> str:
    """Return the test number of the model that was made here, with its interval, in words."""
    from regraft.measures import headline, task_of

    metrics = json.loads((paths.reports / "metrics.json").read_text("utf-8"))
    return headline(task_of(metrics), metrics["test"])


def _tell_outcome(paths: Paths, outcome: dict[str, Any], *, elsewhere: bool, as_json: bool) -> None:
    """Print what a run did: stages, version, decision, test number, and where to look next."""
    if as_json:
        _print_json(outcome)
        return
    publication = outcome["publication"]
    ran, restored = outcome["stages_run"], outcome["stages_restored"]
    said = ", ".join(ran) if ran else "none" if restored else "none, nothing has changed"
    typer.echo(f"stages run: {said}" + (f"; restored from the cache: {', '.join(restored)}" if restored else ""))
    if "test" in outcome:
        typer.echo(f"test {outcome['test']}")
    verdict = f"is models:/{publication['name']}@champion" if publication["promoted"] else "is registered, not promoted"
    typer.echo(f"version {publication['version']} {verdict}: {'; '.join(publication['reasons'])}")
    report = f"with MLflow run {publication['run_id']}" if elsewhere else paths.reports / "report.html"
    typer.echo(f"report: {report}")


def _print_rows(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table of plain text, if there is anything in it."""
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
