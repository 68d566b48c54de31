"""The folders of runs, collections and submissions: every file in them, by name, read and written in this room alone.

    RUNS/                            a folder of runs, `runs/` by default
      <run>/                         RunFolder
        config.yaml                  the resolved configuration
        inputs.json                  hashes of what it was trained from: data, and copies in
        tokenizer/, mixer/           its tokenizer, and the file that defines its mixer with those that it imports
        metrics.jsonl, tensorboard/  training metrics
        checkpoints/                 with index.json
        train.json                   Summary and provenance of the finished training
        answers/<place>-<key>.jsonl  answers of an evaluation in progress
        records/<place>.jsonl        records; <place>.samples.jsonl, their per-sample scores; <place>.done, the mark
        history/<place>.jsonl        provenance of every start
        state/<place>.json           Status; <place>.jsonl, its attempts; <place>.lock, held by the process at work
      choices/<key>.json             ChoiceFile: the tuned values of some runs
      collected/<experiment>/        Collection
      collected/index.html           the page over all of them
      submissions/<name>-<time>/     Submission
      code/                          snapshots of the code of submissions
      submitting.lock                held while a submission decides what to do

A place is `train`, or one evaluation of one unit: UNIT+KEY. A run may be evaluated with several sets of options, and
each keeps its records, state and answers apart. Methods take a place as `unit`.

Nothing here imports torch or pandas before it needs them: the status of thousands of runs must be quick.
"""

from harness.run_folder.choice import ChoiceFile, choice_file
from harness.run_folder.collection import Collection, collection_of, collections, index_file, read_parquet
from harness.run_folder.run import (
    ACCURACY,
    REWRITE,
    TRAIN,
    RunFolder,
    State,
    Status,
    Summary,
    find_run,
    place_name,
    record_files,
    run_of_records,
    runs_with_inputs,
    started_runs,
    unit_of,
)
from harness.run_folder.submission import (
    Submission,
    code_folder,
    submissions,
    submissions_folder,
    submitted,
    submitting_lock,
)

__all__ = [
    "ACCURACY",
    "ChoiceFile",
    "Collection",
    "REWRITE",
    "RunFolder",
    "State",
    "Status",
    "Submission",
    "Summary",
    "TRAIN",
    "choice_file",
    "code_folder",
    "collection_of",
    "collections",
    "find_run",
    "index_file",
    "place_name",
    "read_parquet",
    "record_files",
    "run_of_records",
    "runs_with_inputs",
    "started_runs",
    "submissions",
    "submissions_folder",
    "submitted",
    "submitting_lock",
    "unit_of",
]
