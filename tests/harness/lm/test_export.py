"""Exporting runs: the files, the tokenizer, the command, what is refused, and folders of earlier versions."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoTokenizer
from typer.testing import CliRunner

from harness.data.tokenizer import load_tokenizer
from harness.lm.export import export, to_llama
from harness.lm.load import load_lm, load_trained
from harness.model.language_model import ModelConfig, build_model
from run import app
from tests.harness.lm.models import MODELS, ask
from tests.harness.lm.runs import BOS, PROMPTS, TEXTS, finished_run, greedy, load, model_config, new_tokens, padded

cli = CliRunner()
pytestmark = pytest.mark.usefixtures("modules_cache")


def test_lm_eval_scores_documents_with_one_bos(one: Path) -> None:
    # HFLM adds a BOS to documents itself, so the tokenizer must not, as the model card says.
    hf = HFLM(pretrained=str(one / "out"), trust_remote_code=True, add_bos_token=False, device="cpu")
    documents = ask("loglikelihood_rolling", [(text,) for text in TEXTS])
    expected = load_lm(one / "run").loglikelihood_rolling(documents)
    assert hf.loglikelihood_rolling(documents, disable_tqdm=True) == pytest.approx(expected, abs=1e-4)


def test_the_tokenizer_adds_one_bos_and_pads_on_the_left(one: Path) -> None:
    for trust in (
        False,
        True,
    ):  # the tokenizer needs no remote code; without trust, transformers would ask about the model's
        tokenizer = AutoTokenizer.from_pretrained(one / "out", trust_remote_code=trust)
        for text, prompt in zip(TEXTS, PROMPTS, strict=True):
            assert tokenizer(text)["input_ids"] == prompt and prompt.count(BOS) == 1
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch["attention_mask"], padded(PROMPTS, "left")["attention_mask"])
    model, ours = load(one / "out"), load_trained(one / "run")[0]
    output = model.generate(**batch, do_sample=False, max_new_tokens=10)
    assert new_tokens(output, batch["input_ids"].shape[1], BOS) == greedy(ours, BOS)
    assert model.generation_config.eos_token_id == BOS


def test_a_tokenizer_that_adds_bos_and_eos_itself_adds_one_bos_once_exported(tmp_path: Path) -> None:
    tokenizer = load_tokenizer()
    tokenizer.eos_token, bos = "the", tokenizer.bos_token
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} {bos} $A the", special_tokens=[(bos, BOS), ("the", eos)]
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    finished_run(tmp_path / "run", model_config("mamba2", "recurrent"), str(tmp_path / "tokenizer"))
    out = export(tmp_path / "run", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out, trust_remote_code=True)(TEXTS[0])["input_ids"] == PROMPTS[0]
    assert sorted(load(out).generation_config.eos_token_id) == sorted([BOS, eos])


def test_a_trained_run_is_exported_by_the_command_line(tmp_path: Path, small_data: Path) -> None:
    phase = {"tokens": 3 * 4 * 64, "seq_len": 64, "rows": {"text": 2, "mqar": 2}}
    content = {
        "name": "tiny",
        "preset": "cpu-600k",
        "mixers": ["gdn2"],
        "data": {"source": str(small_data), "phases": [phase]},
        "train": {"lr": 1e-3, "threads": 1},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    trained = cli.invoke(app, ["train", str(tmp_path / "tiny.yaml"), "--run", "gdn2", "--runs", str(tmp_path / "runs")])
    assert trained.exit_code == 0, trained.output
    (run,) = (tmp_path / "runs").glob("gdn2-*")
    arguments = ["export", "--run", str(run), "--out", str(tmp_path / "out")]
    done = cli.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_mixerbench.py",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert not list(tmp_path.glob(".*partial"))
    model, config = load_trained(run)
    card, birth = (tmp_path / "out" / "README.md").read_text(), json.loads((run / "train.json").read_text())
    facts = [config.run_id, config.hash, birth["provenance"]["git_commit"], birth["weights_sha256"], "torch"]
    assert all(f"| {fact} |" in card for fact in facts)
    settings = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert settings.language_model == config.model.model_dump(mode="json")
    assert (settings.bos_token_id, settings.dtype) == (BOS, torch.float32)
    with torch.no_grad():
        tokens = torch.tensor([PROMPTS[1]])
        assert torch.equal(load(tmp_path / "out")(tokens).logits, model(tokens)[0])
    stamp = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    again = cli.invoke(app, arguments)
    assert again.exit_code == 0 and (tmp_path / "out" / "config.json").stat().st_mtime_ns == stamp


def test_what_cannot_be_exported_is_named(one: Path, tmp_path: Path) -> None:
    def error(run: Path, out: Path) -> str:
        ended = cli.invoke(app, ["export", "--run", str(run), "--out", str(out)])
        assert ended.exit_code == 2 and not list(tmp_path.glob("*partial*"))
        return ended.stderr

    assert "no run lies there" in error(tmp_path, tmp_path / "out")
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.yaml").write_text((one / "run" / "config.yaml").read_text())
    assert "is not trained to its end" in error(tmp_path / "started", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    for name in ("empty", "other", "started/config.yaml"):
        assert "exists and is not an export of gated_deltanet-hybrid" in error(one / "run", tmp_path / name)


def test_a_failed_export_leaves_nothing_behind(one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.lm.export._check_bos", full)
    with pytest.raises(OSError, match="No space left"):
        export(one / "run", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_without_mixerbench_the_remote_code_says_what_to_install(
    one: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    forget_remote_code(monkeypatch)
    monkeypatch.setitem(sys.modules, "harness", None)  # as if it were not installed
    with pytest.raises(
        ImportError, match=r"cannot be imported \(.*harness.*\); install it with `pip install PATH_OF_ITS"
    ):
        load(one / "out")


def test_a_folder_of_an_earlier_version_says_to_export_again(
    one: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    forget_remote_code(monkeypatch)
    shutil.copytree(one / "out", tmp_path / "old")
    code = tmp_path / "old" / "modeling_mixerbench.py"
    now = "    from harness import LanguageModel, ModelConfig, ModelState, advance, read\n"
    then = "    from harness.generate import advance, read\n"
    then += "    from harness.model import LanguageModel, ModelConfig, ModelState\n"
    assert code.read_text().count(now) == 1
    code.write_text(code.read_text().replace(now, then))
    with pytest.raises(ImportError, match="export the run again with `python run.py export`"):
        load(tmp_path / "old")


def forget_remote_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers import remote code anew."""
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


def test_only_attention_models_that_llama_can_represent_become_one() -> None:
    with pytest.raises(ValueError, match="layout: 'recurrent'"):
        to_llama(MODELS["gated_deltanet"](), 0, 64)
    config = {"layout": "attention", "mixer": "attention", "d_model": 32, "vocab_size": 50}
    window = ModelConfig(**config, mixer_options={"heads": 2, "window": 6}, mlp_widths=[64, 64])
    with pytest.raises(ValueError, match="attention.window: 6; LLaMA attends to all tokens"):
        to_llama(build_model(window, 0), 0, 64)
    widths = ModelConfig(**config, mixer_options={"heads": 2}, mlp_widths=[64, 32])
    with pytest.raises(ValueError, match=r"mlp_widths: \[64, 32\] differ"):
        to_llama(build_model(widths, 0), 0, 64)
    bare = ModelConfig(**config, mixer_options={"heads": 2}, mlp_widths=[0, 0])
    with pytest.raises(ValueError, match=r"mlp_widths: 0, but every block of LLaMA has an MLP"):
        to_llama(build_model(bare, 0), 0, 64)
    convolved = ModelConfig(**config, mixer_options={"heads": 2}, mlp_widths=[64, 64], leading_conv=3)
    with pytest.raises(ValueError, match=r"leading_conv: 3, but LLaMA has no convolutions"):
        to_llama(build_model(convolved, 0), 0, 64)
