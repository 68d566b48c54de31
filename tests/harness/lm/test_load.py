"""Loading models for evaluation: a trained run with its own tokenizer and weights, or a preset before training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.lm.load import load_lm, load_trained, untrained_lm
from tests.harness.lm.runs import PROMPTS, finished_run, model_config


def test_a_trained_run_loads_with_its_weights_and_tokenizer(tmp_path: Path) -> None:
    model = finished_run(tmp_path / "run", model_config("mamba2", "recurrent"))
    loaded, config = load_trained(tmp_path / "run")
    assert not loaded.training and config.model == model.config
    tokens = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens)[0], model(tokens)[0])
    lm = load_lm(tmp_path / "run")
    assert lm.tok_encode("The king") == PROMPTS[0]
    if not torch.cuda.is_available():
        assert lm.dtype == torch.float32


def test_a_run_without_finished_training_or_with_other_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished_run(folder, model_config("mamba2", "recurrent"))
    content = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(content | {"weights_sha256": "0"}))
    with pytest.raises(ValueError, match="not the weights that the run ended with; delete .*train.json"):
        load_trained(folder)
    (folder / "train.json").unlink()
    with pytest.raises(ValueError, match="the run is not trained to its end; submit or train it first"):
        load_trained(folder)


def test_an_untrained_model_is_named_by_preset_and_mixer() -> None:
    lm = untrained_lm("cpu-600k/gated_deltanet")
    assert (lm.model.config.layout, lm.model.config.mixer) == ("recurrent", "gated_deltanet")
    assert lm.model.config.vocab_size == len(lm.tokenizer)
    assert untrained_lm("cpu-600k/attention").model.config.layout == "attention"
    with pytest.raises(ValueError, match="--untrained: expected PRESET/MIXER, such as 125m/gdn2, got 'gdn2'"):
        untrained_lm("gdn2")
