"""Train one run from its last checkpoint to its summary, in one process or several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from harness.experiments.run_config import RunConfig
from harness.records.provenance import Provenance, entry, provenance
from harness.run_folder import TRAIN, RunFolder, Summary
from harness.training.distributed import Sharding, World, join_world
from harness.training.metrics_log import metrics_files, profiled, tracked
from harness.training.trainer import LOG_EVERY, Progress, Trainer, TrainingInterrupted, log


def train(
    config: RunConfig,
    run_dir: Path,
    progress: Progress | None = None,
    command: str | None = None,
    stop: Callable[[], bool] | None = None,
    sharding: Sharding = "ddp",
    profile: Path | None = None,
) -> Summary:
    """Train a run to its end, from its last intact checkpoint if it has one. Returns the summary.

    A finished run is not trained again. All processes of a `harness.training.distributed.join_world` call it; rank 0
    writes config.yaml, metrics.jsonl, tensorboard/, checkpoints/, an entry of the run's history and, last, train.json.

    progress: called by rank 0 after every step, with its metrics. command: command line for the provenance; this
    process's own if None. stop: see Trainer.steps. sharding: whether each of several processes holds the whole model
    (`ddp`) or a part of it (`fsdp`); it may change whenever a run resumes. profile: folder for a profile of rank 0, see
    harness.training.metrics_log.profiled.

    Raises TrainingInterrupted if `stop` said so. Raises TrainingStopped, GradientsWrong, CheckpointError, OSError or
    ValueError with a line that names what to change, and PeerFailed in the other processes.
    """
    with join_world() as world, _reported(world):
        if (summary := world.on_first(lambda: RunFolder(run_dir).read_summary())) is not None:
            return summary
        trainer = Trainer(config, run_dir, world, sharding)
        with contextlib.ExitStack() as files:
            files.callback(trainer.writer.close)
            with world.together():
                if world.first:
                    _begun(trainer, command)
                    fallbacks = trainer.model.fallbacks(trainer.dtype)
                    for note in [*trainer.notes, *fallbacks, *trainer.gradient_check]:
                        log.warning(note)
                    write = files.enter_context(metrics_files(run_dir, trainer.step))
                    track = files.enter_context(tracked(config, run_dir))
                    record = files.enter_context(profiled(profile, trainer.device))
            for metrics in trainer.steps(stop):
                with world.together():
                    if world.first:
                        record()
                        if metrics["step"] % LOG_EVERY == 0 or metrics["step"] == config.data.steps:
                            shown = metrics | {"loss": trainer.mean_loss}
                            write(shown)
                            track(shown)
                        if progress is not None:
                            progress(metrics | {"total_steps": config.data.steps, "total_tokens": config.data.tokens})
        weights = trainer.weights_sha256()
        return world.on_first(lambda: _finish(trainer, weights, command))


@contextlib.contextmanager
def _reported(world: World) -> Iterator[None]:
    """With several processes, log the traceback of an error in the process that it ends. Interruptions and wrong use
    are exempt: their one-line message is enough."""
    try:
        yield
    except (TrainingInterrupted, ValueError):
        raise
    except Exception:
        if world.size > 1:
            log.exception(f"rank {world.rank} of {world.size} failed")
        raise


def _begun(trainer: Trainer, command: str | None) -> None:
    """Append this start to the run's history."""
    facts = {"processes": trainer.world.size, "sharding": trainer.sharding}
    facts["fallbacks"] = trainer.model.fallbacks(trainer.dtype)
    RunFolder(trainer.run_dir).append_history(TRAIN, entry(_birth(trainer, command), trainer.step, **facts))


def _birth(trainer: Trainer, command: str | None) -> Provenance:
    backend, files = trainer.model.backend(trainer.dtype), (trainer.config.mixer_file,)
    return provenance(trainer.config.hash, trainer.device, trainer.dtype, backend, command, files)


def _finish(trainer: Trainer, weights_sha256: str, command: str | None) -> Summary:
    """Write train.json of a run that has been trained to its end."""
    config = trainer.config
    summary = Summary(
        run=config.run_id,
        label=config.label,
        mixer=config.mixer,
        layout=config.layout,
        preset=config.preset,
        seed=config.seed,
        **asdict(trainer.model.cost(config.data.seq_len)),
        mlp_widths=config.model.mlp_widths,
        steps=config.data.steps,
        tokens_seen=config.data.tokens,
        train_loss=trainer.mean_loss,
        tokens_per_second=config.data.tokens / trainer.seconds,
        weights_sha256=weights_sha256,
        world_size=trainer.world.size,
        sharding=trainer.sharding,
        skipped=trainer.skipped,
        spikes=trainer.spikes,
    )
    birth = asdict(_birth(trainer, command))
    RunFolder(trainer.run_dir).write_summary(summary, birth | {"gradient_check": trainer.gradient_check})
    return summary
