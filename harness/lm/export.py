"""Export models to transformers: a run as a folder that its Auto classes load, an attention model as a LLaMA."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.experiments.run_config import RunConfig
from harness.files import atomic_folder
from harness.lm.hf.modeling_mixerbench import MIXER_FILE, MixerbenchConfig, MixerbenchForCausalLM
from harness.lm.load import load_trained
from harness.model.language_model import LanguageModel
from harness.run_folder import RunFolder, Summary
from harness.tables.escaping import in_markdown
from harness.training.inputs import run_tokenizer

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [mixerbench]
---
# {run}

{label}, {layout} layout, trained by mixerbench. The code of the model is in that package: install it, then

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
print(tokenizer.decode(model.generate(**tokenizer("The king", return_tensors="pt"), max_new_tokens=32)[0]))
```

The tokenizer adds the BOS token with which every document started in training, and pads on the left; the model does
not read padding. `dtype=torch.bfloat16` computes as training does under autocast: the weights of linear layers are
stored in bfloat16, all others in fp32. For lm-eval's `hf`, set `pretrained=FOLDER,trust_remote_code=True` and
`max_length` (default 2048). Rolling log-likelihoods also need `add_bos_token=False`, since lm-eval adds a BOS to them
itself.

Provenance; `train_loss` is the mean of the last steps, in nats per token:

| | |
|---|---|
{rows}
"""


def to_llama(model: LanguageModel, bos_token_id: int, max_length: int) -> LlamaForCausalLM:
    """Copy an attention model into a LlamaForCausalLM of the same dtype.

    bos_token_id: the token that starts a document; it also ends generation. max_length: the context length that the
    configuration declares. Raises ValueError for anything that LLaMA's class cannot represent: another layout, a
    window, MLPs of different widths or none, convolutions.
    """
    config = model.config
    if config.layout != "attention":
        raise ValueError(f"layout: {config.layout!r} is not LLaMA; only the attention layout can be exported")
    if len(set(config.mlp_widths)) > 1:
        raise ValueError(
            f"mlp_widths: {config.mlp_widths} differ, but LLaMA has one width; export a model with equal widths"
        )
    if not config.mlp_widths[0]:
        raise ValueError("mlp_widths: 0, but every block of LLaMA has an MLP; export a model with MLPs")
    if config.leading_conv:
        raise ValueError(
            f"leading_conv: {config.leading_conv}, but LLaMA has no convolutions; export a model with leading_conv 0"
        )
    attention = model.blocks[0].mixer
    if attention.config.window is not None:
        raise ValueError(
            f"attention.window: {attention.config.window}; LLaMA attends to all tokens; export a model without a window"
        )
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.mlp_widths[0],
            num_hidden_layers=config.layers,
            num_attention_heads=attention.heads,
            num_key_value_heads=attention.kv_heads,
            head_dim=attention.head_dim,
            max_position_embeddings=max_length,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": attention.config.rope_base},
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=bos_token_id,
        )
    )
    weights = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for i, block in enumerate(model.blocks):
        parts = {
            "input_layernorm": block.mixer_norm,
            "self_attn": block.mixer,
            "post_attention_layernorm": block.mlp_norm,
            "mlp": block.mlp,
        }
        for name, part in parts.items():
            weights |= {f"model.layers.{i}.{name}.{key}": value for key, value in part.state_dict().items()}
    llama.to(model.head.weight.dtype).load_state_dict(weights)
    return llama.eval()


def export(run_dir: Path, out: Path, trust: bool = False) -> Path:
    """Write a trained run to a folder for AutoModelForCausalLM (with trust_remote_code) and AutoTokenizer, in fp32.

    The folder appears whole or not at all. If `out` already holds an export of the same weights, it is left as it is.
    Returns the folder. trust: see `load_trained`.

    Raises ValueError as `load_trained` does, if `out` holds anything else, or if the tokenizer does not fit the model.
    """
    model, config = load_trained(run_dir, trust)
    folder = RunFolder(run_dir)
    summary, birth = folder.read_summary(), folder.read_training_provenance()
    run = {"id": config.run_id, "weights_sha256": summary.weights_sha256}
    run |= {key: birth[key] for key in ("config_hash", "git_commit", "git_dirty", "backend")}
    out = Path(out).expanduser().resolve()
    if out.exists():
        if all(_exported(out).get(key) == run[key] for key in ("id", "weights_sha256")):
            return out
        raise ValueError(
            f"--out: {out} exists and is not an export of {config.run_id}; delete it or give another folder"
        )
    tokenizer = _tokenizer(run_tokenizer(run_dir, config), config, model)
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ends = sorted({tokenizer.bos_token_id, tokenizer.eos_token_id})  # a document also ends at the BOS of the next one
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    with torch.device("meta"):  # its own weights are replaced at once
        theirs = MixerbenchForCausalLM(MixerbenchConfig(model.config.model_dump(mode="json"), run, **ids))
    theirs.model = model
    theirs.config.mixer_file = MIXER_FILE if config.mixer_file else None
    theirs.generation_config = GenerationConfig(**ids)
    with atomic_folder(out) as partial:
        theirs.save_pretrained(partial, max_shard_size=2**60)
        tokenizer.save_pretrained(partial)
        _check_bos(partial, tokenizer)
        (partial / "README.md").write_text(_card(config, summary, birth), encoding="utf-8")
    return out


def _exported(folder: Path) -> dict[str, Any]:
    """The run that a folder was exported from; empty if it is not an export."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config["run"] if config.get("model_type") == MixerbenchConfig.model_type else {}


def with_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Copy a tokenizer and let the copy add the BOS to each text, as transformers models expect."""
    copied, bos = copy.deepcopy(tokenizer), tokenizer.bos_token
    copied.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return copied


def _tokenizer(trained: PreTrainedTokenizerFast, config: RunConfig, model: LanguageModel) -> PreTrainedTokenizerFast:
    """A run's tokenizer, which adds the BOS, as in training, and pads on the left.

    Raises ValueError if it has more tokens than the model.
    """
    if len(trained) > model.config.vocab_size:
        raise ValueError(
            f"data.tokenizer: {config.data.tokenizer!r} has {len(trained)} tokens, but the model "
            f"{model.config.vocab_size}; restore the tokenizer that it was trained with"
        )
    eos = trained.eos_token or trained.bos_token
    return PreTrainedTokenizerFast(
        tokenizer_object=with_bos(trained).backend_tokenizer,
        bos_token=trained.bos_token,
        eos_token=eos,
        pad_token=trained.pad_token or eos,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=trained.clean_up_tokenization_spaces,
    )


def _check_bos(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError unless the saved tokenizer adds exactly one BOS before the ids of a text."""
    text = "1 2 3"  # in the vocabulary of every tokenizer, those of bare ids included
    expected = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    ids = PreTrainedTokenizerFast.from_pretrained(folder)(text)["input_ids"]
    if ids != expected:
        raise ValueError(f"data.tokenizer: read back, it gives {ids} instead of {expected}; it cannot be exported")


def _card(config: RunConfig, summary: Summary, birth: dict[str, Any]) -> str:
    """The model card: usage, and a table of the run's results and provenance."""
    facts = {
        "run": config.run_id,
        "mixer": config.mixer,
        **{key: value for key, value in asdict(summary).items() if key not in ("run", "label", "mixer", "layout")},
        "context of the last phase": config.data.seq_len,
        **birth,
    }
    cells = {key: in_markdown(str(value)) for key, value in facts.items() if value is not None}
    rows = "\n".join(f"| {in_markdown(key)} | {cell} |" for key, cell in cells.items())
    return CARD.format(run=config.run_id, label=in_markdown(config.label), layout=config.layout, rows=rows)
