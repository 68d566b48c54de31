"""Command that prepares training data: data prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.command_line import RUNS, RunsRoot, data_app, errors
from harness.progress import working
from slurm.commands.options import SetProfile


@data_app.command()
def prepare(
    source: Annotated[
        str | None, typer.Argument(help="`embedded`, a file of text, JSON or parquet, a folder, or a Hub name.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of a data set on the Hub, instead of SOURCE.")] = None,
    tokenizer: Annotated[str, typer.Option(help="`embedded`, a tokenizer.json, or a Hub name.")] = "embedded",
    out: Annotated[Path | None, typer.Option(help="Output folder; by default one in the cache.")] = None,
    text_field: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    max_tokens: Annotated[int | None, typer.Option(help="Stop the train split after this many tokens.")] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Share of documents; 0.01 by default.")] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Share of documents; 0.01 by default.")] = None,
    shard_tokens: Annotated[int, typer.Option(help="Tokens after which a new shard begins.")] = 100_000_000,
    name: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub data set.")] = None,
    processes: Annotated[int | None, typer.Option(help="CPUs to use on this machine; all by default.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Tokenise in Slurm jobs.", metavar="PROFILE")] = None,
    set_profile: SetProfile = None,
    jobs: Annotated[int, typer.Option(help="Number of jobs that share the work, with --cluster.")] = 1,
    runs: RunsRoot = RUNS,
) -> None:
    """Tokenise text into shards. After an interruption the same command resumes."""
    from harness.data.prepare import account, finish, plan

    with errors(), working("prepare: reading the source") as at:
        if processes is not None and (processes < 1 or cluster is not None):
            raise ValueError(
                f"--processes: {processes} cannot be; give at least 1, and none with --cluster, whose profile has "
                "prepare.cpus_per_task"
            )
        from slurm.preparation import preparing_profile

        profile = preparing_profile(cluster, jobs, set_profile or [])
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
            progress=at.line,
        )
        if data is None and profile is not None:
            from slurm.preparation import submit as submit_preparation

            typer.echo("\n".join(submit_preparation(folder, profile, jobs, runs.resolve())))
            return
        at("prepare: reading and checking the shards")
        data = finish(folder, processes, at.line) if data is None else data
        counts = ", ".join(f"{split} {len(data.tokens(split)):,}" for split in ("train", "validation", "test"))
    typer.echo(f"{data.folder}: tokens {counts}\n{account(data.index)}")
