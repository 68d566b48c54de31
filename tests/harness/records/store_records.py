"""A record for the tests of the store."""

from __future__ import annotations

from harness.records.provenance import provenance
from harness.records.record import Measurement, Record


def record(run: str = "r1", **changes) -> Record:
    """A record of PIQA; `changes` are fields of its measurement."""
    base = {"suite": "language", "task": "piqa", "metric": "acc", "value": 0.5, "stderr": 0.25, "n": 2}
    measurement = Measurement(**{**base, **changes})
    certificate = provenance("abc123", device="cpu", dtype="float32", backend="torch")
    return Record.of(
        measurement, certificate, run=run, label="gdn2", mixer="gdn2", layout="recurrent", preset="cpu-1m", seed=0
    )
