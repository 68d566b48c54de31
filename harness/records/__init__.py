"""Records: numbers with their provenance, and the statistics that compare them.

from harness.records import load, load_samples
"""

from harness.records.provenance import provenance
from harness.records.record import Measurement, Record
from harness.records.store import load, load_answers, load_samples, sample_frame, write_records

__all__ = [
    "Measurement",
    "Record",
    "load",
    "load_answers",
    "load_samples",
    "provenance",
    "sample_frame",
    "write_records",
]
