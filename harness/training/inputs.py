"""The inputs of a run, kept in its folder: its tokenizer, the files that define its mixer, and its data by hash.

With them a run is read from any folder and on any machine, whatever becomes of the originals. The code among them runs
only where its user has run the same content before, or says that it is to be trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.tokenizer import ids_count, load_tokenizer, tokenizer_hash
from harness.experiments.data import DataConfig
from harness.experiments.run_config import RunConfig, read_config
from harness.files import atomic_folder, cache_dir, file_sha256
from harness.run_folder import RunFolder, runs_with_inputs
from harness.training.batches import combined_sha256, data_content, data_sha256
from mixers.identity import identity
from mixers.plugins import files_beside
from mixers.registry import load_file, require_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRUSTED = "trusted"
"""Folder of the cache with a copy of all code that this user has run or trusted, by the hash of its content."""


def keep_inputs(config: RunConfig, run_dir: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Store a run's tokenizer, mixer files and the hash of its data in its folder, unless they are there.

    Raises ValueError if the tokenizer would not be the same when read back.
    """
    folder = RunFolder(run_dir)
    code = [] if config.mixer_file is None else files_beside(Path(config.mixer_file.path))
    names = {str(file.relative_to(code[0].parent)): file for file in code}
    inputs = {
        "data": data_content(config.data),
        "tokenizer": tokenizer_hash(tokenizer),
        "mixer_files": {name: file_sha256(file) for name, file in names.items()},  # the first defines the mixer
    }
    with contextlib.suppress(FileNotFoundError, ValueError):
        if folder.read_inputs() == inputs:
            return
    if ids_count(config.data.tokenizer) is None:  # else its name says all
        shutil.rmtree(folder.tokenizer, ignore_errors=True)
        with atomic_folder(folder.tokenizer) as partial:
            try:
                tokenizer.save_pretrained(str(partial))
            except Exception as error:  # the tokenizers library raises bare Exception for a full disk
                reason = f"cannot be written ({error}); free space or fix the permissions, then run again"
                raise OSError(f"{folder.tokenizer}: {reason}") from None
            from transformers import PreTrainedTokenizerFast

            if tokenizer_hash(PreTrainedTokenizerFast.from_pretrained(str(partial))) != inputs["tokenizer"]:
                raise ValueError(
                    f"data.tokenizer: {config.data.tokenizer!r} is another tokenizer when it is read back; convert it "
                    "to a tokenizer.json"
                )
    if code:
        shutil.rmtree(folder.mixer_files, ignore_errors=True)
        _copy(names, folder.mixer_files)
    folder.write_inputs(inputs)


def run_tokenizer(run_dir: Path, config: RunConfig) -> PreTrainedTokenizerFast:
    """The tokenizer that a run was trained with. Raises ValueError if it cannot be had any more.

    Runs of versions that kept no inputs need the original.
    """
    from transformers import PreTrainedTokenizerFast

    folder = RunFolder(run_dir)
    if ids_count(config.data.tokenizer) is not None or not folder.inputs.is_file():
        return load_tokenizer(config.data.tokenizer)
    inputs = folder.read_inputs()
    path = folder.tokenizer / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path}: the run's tokenizer is missing; {_RESTORE}")
    try:
        # Not AutoTokenizer, which looks for code that a configuration names.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder.tokenizer))
        known = tokenizer_hash(tokenizer)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(f"{path}: damaged ({' '.join(str(error).split())}); {_RESTORE}") from None
    if combined_sha256(inputs["data"], known) != config.data_sha256:
        raise ValueError(f"{path}: not the tokenizer that the run was trained with; {_RESTORE}")
    return tokenizer


_RESTORE = "copy the run's folder again, or delete its train.json and submit it again"


def load_mixer(run_dir: Path, config: RunConfig, trust: bool = False) -> None:
    """Load the code that defines a run's mixer, if it is not one of ours: the copy in the run's folder.

    Raises ValueError if it is missing or damaged, and unless its content is `trusted` already or `trust` is given.
    """
    if config.mixer_file is None:
        return
    folder = RunFolder(run_dir)
    if not folder.inputs.is_file():  # a run of a version that kept none
        path = Path(config.mixer_file.path)
        if path.is_file():
            _require_trust(path, trust)
        require_file(config.mixer_file)
        return
    listed = folder.read_inputs()["mixer_files"]
    for name, sha256 in listed.items():
        if not (folder.mixer_files / name).is_file() or file_sha256(folder.mixer_files / name) != sha256:
            raise ValueError(f"{folder.mixer_files / name}: missing or damaged; {_RESTORE}")
    main = next(iter(listed), "")
    if listed.get(main) != config.mixer_file.sha256:
        raise ValueError(f"{folder.inputs}: names another file than the one that defines the run's mixer; {_RESTORE}")
    load_file(_require_trust(folder.mixer_files / main, trust))


def trusted(file: str | Path) -> Path:
    """Note that the user runs a Python file, and what it imports from beside it, on purpose. Returns its noted copy."""
    files = files_beside(Path(file))
    target = _noted(files)
    if not target.parent.is_dir():
        with contextlib.suppress(OSError):  # a cache that cannot be written: the user is asked again
            _copy({str(each.relative_to(files[0].parent)): each for each in files}, target.parent)
    return target if target.is_file() else files[0]


def is_trusted(file: Path) -> bool:
    """Whether the user has run a Python file with this content before, and all that it imports from beside it."""
    return _noted(files_beside(file)).is_file()


def _require_trust(path: Path, trust: bool) -> Path:
    """The copy of code from elsewhere that this user has trusted. Raises ValueError if there is none.

    The copy is what runs: beside the original may lie files that a hash of the named ones does not cover.
    """
    if trust:
        return trusted(path)
    copy = _noted(files_beside(path))
    if not copy.is_file():
        raise ValueError(
            f"{path}: code that you have not run before, which reading this run would execute; read it, and give "
            "--trust if it may run"
        )
    return copy


def _noted(files: list[Path]) -> Path:
    """Where the copy of a file is noted, by the content of all its files."""
    content = {str(file.relative_to(files[0].parent)): file_sha256(file) for file in files}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return cache_dir() / TRUSTED / digest / files[0].name


def _copy(files: dict[str, Path], folder: Path) -> None:
    with atomic_folder(folder) as partial:
        for name, file in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, partial / name)


def find_data(config: DataConfig, runs_root: Path) -> tuple[PreTrainedTokenizerFast, str]:
    """The tokenizer and the hash of an experiment's training data, also if the data or the tokenizer have gone.

    Then they are taken from a run in `runs_root` that was trained on them: with the same phases, from data and a
    tokenizer of the same names. Raises ValueError if there is no such run, or there are several that differ.
    """
    try:
        return load_tokenizer(config.tokenizer), data_sha256(config)
    except ValueError as error:
        missing = error
    found: dict[str, Path] = {}
    for run in runs_with_inputs(runs_root):
        known = read_config(run)
        if _names(known.data) == _names(config):
            found.setdefault(known.data_sha256, run)
    if len(found) > 1:
        runs = " and ".join(str(run) for run in found.values())
        raise ValueError(f"{missing} (the runs {runs} were trained on different data of this name)") from None
    for sha256, run in found.items():
        return run_tokenizer(run, read_config(run)), sha256
    raise missing


def _names(config: DataConfig) -> list[Any]:
    return [Path(config.source).name, Path(config.tokenizer).name, identity(config)]
