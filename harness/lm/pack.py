"""Pack a trained run into one file that can be evaluated elsewhere, and unpack such a file.

The file is a tar with everything but the optimiser's state. The same run gives the same bytes.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from harness.data.tokenizer import load_tokenizer
from harness.experiments.run_config import read_config
from harness.files import atomic, atomic_folder, partial_path
from harness.lm.load import finished_checkpoint
from harness.run_folder import RunFolder
from harness.training import checkpoint
from harness.training.batches import data_sha256
from harness.training.inputs import keep_inputs


def pack(run_dir: Path, out: Path | None = None) -> Path:
    """Write a trained run to a file, by default `<run>.tar` in the current folder, whole or not at all. Returns it.

    Raises ValueError if the run is not trained, its weights are not those that it ended with, or its tokenizer cannot
    be had.
    """
    config, folder, content = read_config(run_dir), RunFolder(run_dir), finished_checkpoint(run_dir)
    summary = folder.read_summary()
    assert summary is not None
    if not folder.inputs.is_file():  # a run of a version that kept none
        if data_sha256(config.data) != config.data_sha256:
            raise ValueError(f"data: not those that {run_dir} was trained on; put them and their tokenizer back")
        keep_inputs(config, run_dir, load_tokenizer(config.data.tokenizer))
    out = Path(f"{summary.run}.tar") if out is None else out.expanduser()
    staged = partial_path(out.resolve().with_name(f"{out.name}-weights"))
    try:
        kept = {key: content[key] for key in ("config_hash", "step", "model")}
        checkpoint.save(staged, content["step"], kept)
        files = {str(file.relative_to(run_dir)): file for file in folder.portable()}
        files |= {str(file.relative_to(staged)): file for file in staged.rglob("*") if file.is_file()}
        with (
            atomic(out.resolve()) as written,
            tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in sorted(files):
                member = tarfile.TarInfo(f"{summary.run}/{name}")  # owner, time and mode are the same for all
                member.size = files[name].stat().st_size
                with files[name].open("rb") as content_of:
                    tar.addfile(member, content_of)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return out


def unpack(file: Path, runs_root: Path) -> Path:
    """Unpack a packed run into a folder of runs, whole or not at all. Returns its folder.

    Nothing is written outside of that folder, and nothing that is there is replaced. Raises ValueError if the file is
    no packed run, is damaged or holds anything but plain files of one run, and if the folder exists.
    """
    try:
        with file.open("rb") as packed, tarfile.open(fileobj=packed, mode="r:") as tar:
            members = {_place(member, file): member for member in tar.getmembers()}
            tops = {place.parts[0] for place in members}
            if len(tops) != 1 or len(members) < len(tar.getmembers()):
                raise ValueError(f"{file}: holds no single run; give a file made by `runs pack`")
            target = runs_root / tops.pop()
            if target.exists():
                raise ValueError(f"{target}: exists; delete it, or give another --runs")
            with atomic_folder(target) as partial:
                for place, member in members.items():
                    path = partial.joinpath(*place.parts[1:])
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write(tar.extractfile(member), path)
                read_config(partial)
                RunFolder(partial).read_summary()
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file; give a file made by `runs pack`") from None
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{file}: damaged, or no packed run ({error}); copy it again") from None
    return target


def _place(member: tarfile.TarInfo, file: Path) -> PurePosixPath:
    """Where a member goes, relative to the folder of runs. Raises ValueError unless it is a plain file inside it."""
    parts = member.name.split("/")
    if not member.isreg() or len(parts) < 2 or any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise ValueError(f"{file}: holds {member.name!r}, which is no plain file of a run; do not unpack it")
    return PurePosixPath(member.name)


def _write(content: BinaryIO | None, path: Path) -> None:
    assert content is not None  # a plain file has content
    with path.open("xb") as file:
        shutil.copyfileobj(content, file)
