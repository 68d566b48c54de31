"""Ids of runs: what changes them, what does not, and those of ten committed runs, frozen for good."""

from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import create_model

from harness.data.tokenizer import ids_count
from harness.experiments.data import DataConfig, Phase, RecallPhase, RecallSet
from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import TrainConfig
from harness.model.language_model import ModelConfig
from mixers.identity import Incidental, Neutral
from mixers.registry import entries, register_mixer
from mixers.registry import mixer_config as validated

DATA = "0" * 64
PHASE = {"tokens": 1000, "seq_len": 64, "rows": {"text": 4}}
BASE: dict[str, Any] = {"name": "tiny", "preset": "cpu-600k", "mixers": ["gdn2"], "data": {"phases": [PHASE]}}

FROZEN = {
    ("demo", None, 0): "attention-attention-s0-66a10a62",
    ("demo", None, 1): "mamba2-recurrent-s0-506f90d4",
    ("demo", None, 3): "mamba3_mimo-recurrent-s0-a6256741",
    ("demo", None, 6): "gdn2-recurrent-s0-8bc8edc8",
    ("recall", None, 17): "gdn2-recurrent-s2-8fe0bd24",  # tuned
    ("small-scale", None, 0): "gdn2-recurrent-s0-bfec0394",
    ("table2", None, 0): "mamba2-recurrent-s0-45637f41",
    ("table2", "125m", 9): "mamba3_mimo-hybrid-s0-ee230392",
    ("table5", None, 3): "gdn2-recurrent-s0-e1e2130c",
    ("figure2", None, 1): "mamba3_siso-hybrid-s0-8a68ebf0",
}
"""Ids by experiment, scale and position. Changing one orphans runs that people have trained: find another way."""

FIRST_FIELDS = {
    "RunConfig": ["label", "mixer", "layout", "preset", "seed", "model", "data", "data_sha256", "train", "mixer_file"],
    "ModelConfig": [
        "layout",
        "mixer",
        "mixer_options",
        "attention_options",
        "d_model",
        "mlp_widths",
        "vocab_size",
        "tie_embeddings",
        "embedding_std",
        "norm_eps",
    ],
    "DataConfig": ["phases"],
    "Phase": ["tokens", "seq_len", "rows"],
    "RecallSet": ["pairs", "seq_len", "examples"],
    "RecallPhase": ["mqar", "rows", "epochs", "protocol"],
    "TrainConfig": ["accumulation", "lr", "final_lr_ratio", "warmup_ratio", "weight_decay", "betas", "clip", "dtype"],
    "options of gated_deltanet": [
        "heads",
        "head_dim",
        "value_heads",
        "value_dim",
        "conv_width",
        "norm_eps",
        "beta_range",
        "output_gate",
    ],
    "options of gdn2": [
        "heads",
        "head_dim",
        "value_heads",
        "value_dim",
        "conv_width",
        "norm_eps",
        "erase_gate",
        "write_gate",
        "erase_range",
        "output_gate",
    ],
    "options of kda": ["heads", "head_dim", "value_heads", "value_dim", "conv_width", "norm_eps", "beta_range"],
    "options of mamba2": ["d_inner", "d_state", "head_dim", "n_groups", "conv_width"],
    "options of mamba3_siso": ["mimo", "rank", "d_inner", "d_state", "head_dim", "rope_fraction"],
    "options of mamba3_mimo": ["mimo", "rank", "d_inner", "d_state", "head_dim", "rope_fraction"],
    "options of attention": ["heads", "head_dim", "kv_heads", "window", "rope_base"],
}
"""Fields of the first version, which always count. A new field declares a Neutral value or is INCIDENTAL."""


def runs(folder: Path, *overrides: str, **changes: Any) -> list[RunConfig]:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(BASE | changes))
    return expand(load_experiment(path, list(overrides)), 4096, DATA).runs


@pytest.mark.parametrize(("name", "scale", "position"), FROZEN)
def test_the_ids_of_committed_experiments_are_frozen(name: str, scale: str | None, position: int) -> None:
    experiment = load_experiment(name, scale=scale)
    size = ids_count(experiment.data.tokenizer) or (4096 if experiment.data.tokenizer == "embedded" else 32000)
    assert expand(experiment, size, DATA, {"mqar": {}}).runs[position].run_id == FROZEN[name, scale, position]


def test_a_new_field_declares_what_the_code_did_before_it_existed() -> None:
    models = (RunConfig, ModelConfig, DataConfig, Phase, RecallSet, RecallPhase, TrainConfig)
    kinds = {kind.__name__: kind for kind in models}
    kinds |= {f"options of {name}": entry.cls.config_class for name, entry in entries().items() if name in MIXERS}
    for name, kind in kinds.items():
        for field, info in kind.model_fields.items():
            marked = any(isinstance(mark, Neutral | Incidental) for mark in info.metadata)
            assert marked or field in FIRST_FIELDS[name], f"{name}: {field}: mark it Neutral(...) or INCIDENTAL"


def test_a_run_is_identified_by_what_is_trained_and_not_by_how_it_is_called_or_made(tmp_path: Path) -> None:
    (first,) = runs(tmp_path)
    (relabelled,) = runs(tmp_path, name="other", mixers=[{"mixer": "gdn2", "label": "ours"}], suites={"recall": {}})
    assert relabelled.run_id == first.run_id
    made = ("train.threads=1", "train.checkpoint_every=7", "train.compile=true", "data.source=/elsewhere")
    for override in (*made, "data.tokenizer=copy.json"):
        assert runs(tmp_path, override)[0].run_id == first.run_id, override
    assert runs(tmp_path, "match=flops")[0].run_id == first.run_id  # here the widths are the same
    neutral = (f"train.init_gain={2**-2.5}", "leading_conv=0")
    assert runs(tmp_path, *neutral)[0].run_id == first.run_id
    changes = ("train.init_gain=0.7", "train.init_gain=upstream", "leading_conv=3")
    assert len({first.run_id, *(runs(tmp_path, change)[0].run_id for change in changes)}) == 4
    for override in ("train.lr=1e-3", "train.accumulation=2", "preset=cpu-1m", "seeds=[1]"):
        assert runs(tmp_path, override)[0].run_id != first.run_id, override
    assert first.model_copy(update={"data_sha256": "1" * 64}).run_id != first.run_id


def test_an_option_given_its_default_value_makes_the_same_run_and_another_value_another(tmp_path: Path) -> None:
    (first,) = runs(tmp_path)
    assert runs(tmp_path, mixers=[{"mixer": "gdn2", "options": {"erase_range": 1}}])[0].run_id == first.run_id
    assert runs(tmp_path, mixers=[{"mixer": "gdn2", "options": {"chunk_size": 16}}])[0].run_id == first.run_id
    assert runs(tmp_path, mixers=[{"mixer": "gdn2", "options": {"erase_range": 2}}])[0].run_id != first.run_id
    assert first.model.mixer_options["erase_range"] == 1  # spelt out, whatever the default becomes


def test_a_new_option_of_a_mixer_changes_no_id_and_old_runs_keep_its_neutral_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gdn2 = entries()["gdn2"].cls
    register_mixer("grown", display="Grown")(type("Grown", (gdn2,), {}))
    geometry = {"heads": 2, "head_dim": 32}
    mixers = [{"mixer": "grown", "options": geometry}]
    try:
        (before,) = runs(tmp_path, mixers=mixers)
        stored = before.model_dump(mode="json")
        field = (Annotated[str, Neutral("as before")], "better")
        grown = create_model("GrownConfig", __base__=gdn2.config_class, start=field)
        monkeypatch.setattr(entries()["grown"].cls, "config_class", grown)
        assert RunConfig.stored(stored).run_id == before.run_id
        (after,) = runs(tmp_path, mixers=[{"mixer": "grown", "options": geometry | {"start": "as before"}}])
        assert after.run_id == before.run_id
        (default,) = runs(tmp_path, mixers=[{"mixer": "grown", "options": geometry | {"heads": 2, "start": "better"}}])
        assert default.run_id != before.run_id
        assert validated("grown", default.model.mixer_options).start == "better"
    finally:
        del entries()["grown"]


def test_a_stored_configuration_is_the_same_run(tmp_path: Path) -> None:
    for run in runs(tmp_path, mixers=["gdn2", "mamba3_siso", "attention"], layouts=["hybrid"]):
        assert RunConfig.stored(run.model_dump(mode="json")) == run


MIXERS = ("gdn2", "gated_deltanet", "kda", "mamba2", "mamba3_siso", "mamba3_mimo", "attention")
