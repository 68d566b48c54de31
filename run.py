"""The command line. Every command parses, calls one function and prints."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

# Imported for the commands that they register.
import harness.commands  # noqa: F401
import slurm.commands  # noqa: F401
import suites.commands  # noqa: F401
from harness.command_line import AsJson, MixerFiles, SuiteFiles, app, errors, load_mixers, print_result

# The command line is for reading: libraries that announce themselves on import are asked not to.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ORDER = (
    *("doctor", "list", "params", "check", "prefetch", "submit", "status", "logs", "cancel", "retry", "train", "debug"),
    *("collect", "table", "compare", "figure", "report", "index", "eval", "generate", "export", "schema"),
)
"""Commands as `--help` lists them: what one needs first comes first."""


@app.command()
def doctor(
    cluster: Annotated[str | None, typer.Option(help="Check a profile against the cluster at hand.")] = None,
    set_profile: slurm.commands.options.SetProfile = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine has: versions, device, backends, data.

    It names what computes each mixer, and what would. Exit code 1 if the cluster would refuse the profile.
    """
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
            from slurm.probe import delays, problems
            from slurm.profile import load_profile

            profile = load_profile(cluster, set_profile or [])
            refused = problems(profile)
            report["cluster"] = refused or [f"{cluster}: fits", *delays(profile)]
    rows = [f"{key:24} {value}" for key, value in report.items() if key not in ("mixers", "cluster")]
    for name, mixer in report["mixers"].items():
        rows.append(f"mixer {name:18} runs on {mixer['serving']}")
        rows += [f"{'':24}   not {backend}: {why}" for backend, why in mixer["backends"].items() if why is not None]
    if cluster is not None:
        rows += [f"{'cluster':24} {line}" for line in report["cluster"]]
    print_result(report, as_json, "\n".join(rows))
    if refused:
        raise typer.Exit(1)


app.registered_commands.sort(key=lambda command: ORDER.index(command.name or command.callback.__name__))


@app.command()
def schema(
    name: Annotated[
        str, typer.Argument(help="experiment, profile (of a cluster), or the name of a mixer or a suite.")
    ] = "experiment",
    out: Annotated[Path | None, typer.Option(help="Write the JSON schema to this file.")] = None,
    mixer_file: MixerFiles = None,
    suite_file: SuiteFiles = None,
    as_json: AsJson = False,
) -> None:
    """Print every field of a configuration, or write its JSON schema.

    With the schema an editor completes and checks experiment files.
    """
    from harness.experiments.json_schema import experiment_schema, render
    from harness.experiments.schema import Experiment
    from harness.files import write_json
    from mixers.registry import entries
    from mixers.registry import get as mixer
    from slurm.profile import Profile
    from suites.registry import entries as suites
    from suites.registry import load_files

    with errors():
        load_mixers(mixer_file)
        load_files(suite_file or [])
        configs = {suite_name: found.Config for suite_name, found in suites().items()}
        if name == "experiment":
            kind: Any = Experiment
            options = {mixer_name: entry.cls.config_class for mixer_name, entry in entries().items()}
            content = experiment_schema(configs, options)
        else:
            kind = Profile if name == "profile" else configs.get(name) or mixer(name).cls.config_class
            content = kind.model_json_schema()
        if out is not None:
            write_json(out, content)
    print_result(content, as_json, f"{out}: JSON schema of {name}" if out is not None else render(kind))


def main() -> None:
    """Entry point of the console script `mixerbench`. A character that the terminal cannot show becomes `?`."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()
