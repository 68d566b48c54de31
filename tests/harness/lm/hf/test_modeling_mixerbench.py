"""Exported models in transformers give the same bits, logits and texts with padding, caches and beams."""

from __future__ import annotations

import copy
import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, pipeline

from harness.files import CHECKOUT
from harness.lm.export import export
from harness.lm.generate import generate
from harness.lm.load import load_trained
from harness.lm.mixer_lm import MixerLM
from harness.model.language_model import LanguageModel, build_model
from harness.training import checkpoint
from harness.training.inputs import trusted
from mixers import registry
from mixers.conformance import SMALL
from mixers.registry import file_of, load_file
from tests.harness.lm.models import ask
from tests.harness.lm.runs import (
    BOS,
    PROMPTS,
    TEXTS,
    TOKENIZER,
    finished_run,
    greedy,
    load,
    model_config,
    new_tokens,
    padded,
)
from tests.mixers.interpreter import upstream_kernels

pytestmark = pytest.mark.usefixtures("modules_cache")
MIXERS = [name for name in SMALL if name != "attention"]
NAMES = [*(f"{mixer}-{layout}" for mixer in MIXERS for layout in ("recurrent", "hybrid")), "attention-attention"]


# fp32 rounding of sums in a different order, for logits of magnitude about 1.
TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module", params=NAMES)
def exported(
    request: pytest.FixtureRequest, modules_cache: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LanguageModel, Path]:
    """A model and the folder of its export, for every mixer and layout."""
    mixer, layout = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    changes = {"tie_embeddings": True} if mixer == "gdn2" else {}
    model = finished_run(folder / "run", model_config(mixer, layout, **changes))
    return model, export(folder / "run", folder / "out")


@pytest.fixture(scope="module")
def ours(exported: tuple[LanguageModel, Path]) -> LanguageModel:
    return exported[0]


@pytest.fixture(scope="module")
def theirs(exported: tuple[LanguageModel, Path]) -> PreTrainedModel:
    return load(exported[1])


def test_weights_and_buffers_survive_bit_for_bit_twice(
    ours: LanguageModel, theirs: PreTrainedModel, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path / "again")
    expected = checkpoint.digest(ours.state_dict())
    assert checkpoint.digest(theirs.model.state_dict()) == expected
    assert checkpoint.digest(load(tmp_path / "again").model.state_dict()) == expected
    assert not theirs.training
    assert (theirs.model.head.weight is theirs.model.embedding.weight) == ours.config.tie_embeddings


@torch.no_grad()
def test_logits_are_the_same_for_whole_texts(ours: LanguageModel, theirs: PreTrainedModel) -> None:
    tokens = torch.tensor([(PROMPTS[1] * 4)[:40], (PROMPTS[2] * 6)[:40]])
    assert torch.equal(theirs(tokens).logits, ours(tokens)[0])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_is_not_read(ours: LanguageModel, theirs: PreTrainedModel, side: str) -> None:
    batch = padded(PROMPTS, side)
    logits = theirs(**batch).logits
    assert logits.isfinite().all()
    for prompt, row, mask in zip(PROMPTS, logits, batch["attention_mask"], strict=True):
        torch.testing.assert_close(row[mask.bool()], ours(torch.tensor([prompt]))[0][0], **TOLERANCE)


@torch.no_grad()
def test_logits_are_the_same_in_pieces_with_a_cache(ours: LanguageModel, theirs: PreTrainedModel) -> None:
    # At first some rows have read nothing but padding; later some have padding between their tokens.
    parts = [padded(PROMPTS, "left"), padded(PROMPTS[::-1], "right"), padded([[5], [6], [8]], "left")]
    tokens, marks = (torch.cat([part[key] for part in parts], 1) for key in ("input_ids", "attention_mask"))
    width = tokens.shape[1]
    cuts, cache, logits = [0, 2, 5, *range(8, width + 1)], None, []
    for a, b in zip(cuts, cuts[1:], strict=False):
        out = theirs(tokens[:, a:b], attention_mask=marks[:, :b], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits)
    assert cache.get_seq_length() == width
    for row, real, pieces in zip(tokens, marks.bool(), torch.cat(logits, 1), strict=True):
        torch.testing.assert_close(pieces[real], ours(row[real][None])[0][0], **TOLERANCE)


def test_greedy_generation_equals_ours_and_ends_at_eos(ours: LanguageModel, theirs: PreTrainedModel) -> None:
    free = greedy(ours, -1)
    stop = free[1][3]
    batch = padded(PROMPTS, "left")
    width = batch["input_ids"].shape[1]
    options = {"do_sample": False, "max_new_tokens": 10, "eos_token_id": stop}
    output = theirs.generate(**batch, **options)
    assert new_tokens(output, width, stop) == greedy(ours, stop)
    alone = theirs.generate(torch.tensor([PROMPTS[1]]), **options)
    assert alone.shape[1] == len(PROMPTS[1]) + free[1].index(stop) + 1


def test_beams_equal_those_of_rereading_and_sampling_repeats_with_its_seed(theirs: PreTrainedModel) -> None:
    batch, options = padded(PROMPTS, "left"), {"num_beams": 3, "do_sample": False, "max_new_tokens": 8}
    cached = theirs.generate(**batch, **options)
    assert torch.equal(cached, theirs.generate(**batch, **options, use_cache=False))
    sampling = {"do_sample": True, "max_new_tokens": 4, "num_return_sequences": 2, "top_k": 0}
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        draws.append(theirs.generate(**batch, **sampling))
    assert draws[0].shape[0] == 2 * len(PROMPTS) and torch.equal(*draws)


def test_beams_depend_on_the_reordered_cache(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = load(one / "out"), padded(PROMPTS, "left")
    options = {"num_beams": 3, "do_sample": False, "max_new_tokens": 8}
    right = model.generate(**batch, **options)
    cache = type(model(batch["input_ids"], use_cache=True).past_key_values)
    monkeypatch.setattr(cache, "reorder_cache", lambda self, rows: None)
    assert not torch.equal(model.generate(**batch, **options), right)


@torch.no_grad()
def test_bfloat16_computes_as_autocast_and_keeps_the_rest_in_fp32(
    exported: tuple[LanguageModel, Path], ours: LanguageModel, tmp_path: Path
) -> None:
    half = load(exported[1], dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    linear = {f"{k}.weight" for k, m in ours.named_modules() if isinstance(m, torch.nn.Linear)}
    if ours.config.tie_embeddings:
        linear.remove("head.weight")
    weights, originals = half.model.state_dict(), ours.state_dict()
    for name, value in weights.items():
        expected = originals[name].bfloat16() if name in linear else originals[name]
        assert value.dtype == expected.dtype and torch.equal(value, expected), name
    tokens = torch.tensor([PROMPTS[1]])
    batch, options = padded(PROMPTS, "left"), {"do_sample": False, "max_new_tokens": 10}
    with torch.autocast("cpu", torch.bfloat16):
        expected, text = ours(tokens)[0], greedy(ours, BOS)
    assert torch.equal(half(tokens).logits, expected)
    assert new_tokens(half.generate(**batch, **options), batch["input_ids"].shape[1], BOS) == text
    half.save_pretrained(tmp_path / "half")
    again = load(tmp_path / "half")
    assert checkpoint.digest(again.model.state_dict()) == checkpoint.digest(weights)


def test_the_loss_is_the_mean_over_labels_and_has_gradients(ours: LanguageModel, theirs: PreTrainedModel) -> None:
    batch = padded(PROMPTS, "left")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    # The BOS is predicted from padding, so it is not a target.
    labels[labels == BOS] = -100
    loss = theirs(**batch, labels=labels).loss
    nats = [torch.nn.functional.cross_entropy(ours(torch.tensor([p]))[0][0, :-1], torch.tensor(p[1:])) for p in PROMPTS]
    lengths = torch.tensor([len(p) - 1.0 for p in PROMPTS])
    torch.testing.assert_close(loss, (torch.stack(nats) * lengths).sum() / lengths.sum(), rtol=1e-5, atol=0)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in theirs.parameters())
    theirs.zero_grad()


def test_lm_eval_loads_the_folder_and_scores_as_ours(exported: tuple[LanguageModel, Path]) -> None:
    model, folder = exported
    endings = [" went up", " must be in want of a wife.", " 21"]
    pairs = [(text, ending) for text in TEXTS for ending in endings] + [("", "No context.")]
    hf = HFLM(pretrained=str(folder), trust_remote_code=True, batch_size=4, device="cpu")
    mine = MixerLM(model, TOKENIZER)
    values = [v for v, _ in mine.loglikelihood(ask("loglikelihood", pairs))]
    scores = hf.loglikelihood(ask("loglikelihood", pairs), disable_tqdm=True)
    assert [v for v, _ in scores] == pytest.approx(values, abs=1e-4)
    texts = [(text, {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}) for text in TEXTS]
    assert hf.generate_until(ask("generate_until", texts), disable_tqdm=True) == mine.generate_until(
        ask("generate_until", texts)
    )


def test_a_model_made_from_the_configuration_alone_is_initialised_as_ours(one: Path) -> None:
    config = AutoConfig.from_pretrained(one / "out", trust_remote_code=True)
    torch.manual_seed(3)
    theirs = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    expected = build_model(load_trained(one / "run")[0].config, 3).state_dict()
    assert checkpoint.digest(theirs.model.state_dict()) == checkpoint.digest(expected)


def test_a_cache_resumes_where_it_stopped(one: Path) -> None:
    model, ours = load(one / "out"), load_trained(one / "run")[0]
    batch = padded(PROMPTS[:2], "left")
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
    copied = copy.deepcopy(cache)
    more = torch.cat([batch["input_ids"], torch.tensor([[5, 6], [8, 9]])], 1)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 2, dtype=torch.long)], 1)
    options = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": None}
    expected = generate(ours, [[*PROMPTS[0], 5, 6], [*PROMPTS[1], 8, 9]], 5)
    for resumed in (cache, copied):
        output = model.generate(more, attention_mask=mask, past_key_values=resumed, **options)
        assert [row[more.shape[1] :].tolist() for row in output] == expected
    copied.reset()
    assert copied.get_seq_length() == 0
    chunks = model.generate(**batch, past_key_values=copied, prefill_chunk_size=2, **options)
    assert torch.equal(chunks, model.generate(**batch, **options))


@pytest.mark.parametrize(("mixer", "layout"), [("attention", "attention"), ("mamba2", "hybrid")])
@torch.no_grad()
def test_convolutions_and_blocks_without_mlps_travel_with_the_folder(tmp_path: Path, mixer: str, layout: str) -> None:
    ours = finished_run(tmp_path / "run", model_config(mixer, layout, leading_conv=3, mlp_widths=[0, 0]))
    theirs = load(export(tmp_path / "run", tmp_path / "out"))
    tokens = torch.tensor([PROMPTS[1]])
    assert torch.equal(theirs(tokens).logits, ours(tokens)[0])
    # Left-padded rows of different lengths, so that states of convolutions and of attention are joined and reordered.
    options = {"do_sample": False, "num_beams": 2, "max_new_tokens": 6, "eos_token_id": None}
    beams = theirs.generate(**padded(PROMPTS, "left"), **options)
    for row, prompt in zip(beams, PROMPTS, strict=True):
        alone = theirs.generate(torch.tensor([prompt]), **options)[0]
        assert row[-6:].tolist() == alone[-6:].tolist()
    half = load(tmp_path / "out", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.model.blocks[0].conv.conv1d.weight.dtype == torch.float32


def test_buffers_that_checkpoints_leave_out_exist_after_loading(tmp_path: Path) -> None:
    # Retention's rotary frequencies would be lost on the meta device.
    options = {"mixer_options": {"num_heads": 2}, "d_model": 32, "mlp_widths": [32]}
    model = finished_run(tmp_path / "run", model_config("fla:MultiScaleRetention", "recurrent", **options))
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load(export(tmp_path / "run", tmp_path / "out"), dtype=dtype)
        buffers, expected = dict(loaded.model.named_buffers()), dict(model.named_buffers())
        assert expected and buffers.keys() == expected.keys()
        assert all(torch.equal(buffers[name], value) for name, value in expected.items())
    if not torch.cuda.is_available():
        with torch.no_grad(), upstream_kernels():
            tokens = torch.tensor([PROMPTS[0]])
            assert torch.equal(load(tmp_path / "out")(tokens).logits, model(tokens)[0])


MIXER = """
import torch
from torch import nn
from mixers.interface import Cost, Mixer, MixerConfig
from mixers.registry import register_mixer


@register_mixer("running_mean", display="Running mean")
class RunningMean(Mixer):
    config_class = MixerConfig

    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        self.proj = nn.Linear(d_model, d_model)
        self.register_buffer("size", torch.full((d_model,), 8.0))

    def mix(self, x, state, return_state):
        total = self.proj(x).cumsum(1)
        if state is not None:
            total = total + state["total"][:, None]
        return total / self.size, {"total": total[:, -1]} if return_state else None
"""


class Hub(BaseHTTPRequestHandler):
    """The Hugging Face Hub, as far as loading a model asks it: files of one repository, tried/model."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        prefix = "/tried/model/resolve/main/"
        file = self.folder / self.path.removeprefix(prefix)
        found = self.path.startswith(prefix) and file.is_file()
        content = file.read_bytes() if found else b""
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", hashlib.sha256(content).hexdigest())
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    handler = type("Served", (Hub,), {"folder": tmp_path / "out"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.long
def test_the_files_of_a_users_own_mixer_travel_with_the_folder_and_through_a_hub(
    tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry.entries()))  # other tests must not see this mixer
    monkeypatch.setattr(registry, "_files", {})
    source = tmp_path / "own.py"
    source.write_text(f"from parts_of_own.steps import SIZE\n{MIXER.replace('8.0', 'SIZE')}")
    (tmp_path / "parts_of_own").mkdir()
    (tmp_path / "parts_of_own" / "__init__.py").touch()
    (tmp_path / "parts_of_own" / "steps.py").write_text("SIZE = 8.0\n")
    load_file(trusted(source))
    config = model_config("running_mean", "recurrent", mixer_options={})
    model = finished_run(tmp_path / "run", config, mixer_file=file_of("running_mean"))
    load(export(tmp_path / "run", tmp_path / "out")).save_pretrained(tmp_path / "again")
    source.unlink()
    shutil.rmtree(tmp_path / "parts_of_own")
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]]))[0]
    torch.save(logits, tmp_path / "logits.pt")
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        f"assert torch.equal(model(torch.tensor([{PROMPTS[0]}])).logits, torch.load('logits.pt'))\n"
        "model.save_pretrained(sys.argv[2])"
    )
    online = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    offline = {"HF_HUB_OFFLINE": "1"}
    # New processes, which do not know the mixer.
    for name, kept, variables in (
        ("out", "kept", offline),
        ("again", "kept", offline),
        ("tried/model", "loaded", online),
        ("loaded", "kept", offline),
    ):
        environment = {"HF_MODULES_CACHE": str(tmp_path / "modules" / name), "PYTHONPATH": str(CHECKOUT)} | variables
        command = [sys.executable, "-c", script, name, kept]
        ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_the_vocabulary_grows_and_travels_with_the_folder(tmp_path: Path, tied: bool) -> None:
    config = model_config("gated_deltanet", "recurrent", tie_embeddings=tied)
    ours = finished_run(tmp_path / "run", config)
    model, tokens = load(export(tmp_path / "run", tmp_path / "out")), torch.tensor([PROMPTS[1]])
    assert model.get_input_embeddings() is model.model.embedding and model.get_output_embeddings() is model.model.head
    old = config.vocab_size
    for size, options in ((old + 3, {}), (old + 7, {"mean_resizing": False})):
        model.resize_token_embeddings(size, **options)
        logits = model(tokens).logits
        assert logits.shape[-1] == size == model.config.vocab_size == model.model.config.vocab_size
        assert torch.equal(logits[..., :old], ours(tokens)[0])
    assert (model.model.head.weight is model.model.embedding.weight) == tied
    # Rows without an old mean are as at initialisation; 256 draws estimate their spread to within 20 %.
    assert model.model.embedding.weight[old + 3 :].std().item() == pytest.approx(0.02, rel=0.2)
    model.save_pretrained(tmp_path / "larger")
    assert torch.equal(load(tmp_path / "larger")(tokens).logits, logits)
    model.resize_token_embeddings(old)
    assert torch.equal(model(tokens).logits, ours(tokens)[0])


@torch.no_grad()
def test_the_last_logits_or_those_of_listed_positions_are_kept(one: Path) -> None:
    model, batch = load(one / "out"), padded(PROMPTS, "left")
    logits = model(**batch).logits
    for kept, expected in ((0, logits), (2, logits[:, -2:]), (torch.tensor([3, 7]), logits[:, [3, 7]])):
        torch.testing.assert_close(model(**batch, logits_to_keep=kept).logits, expected, **TOLERANCE)


def test_a_stop_string_ends_the_text(one: Path) -> None:
    model, tokenizer = load(one / "out"), AutoTokenizer.from_pretrained(one / "out", trust_remote_code=True)
    options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "return_dict_in_generate": True}
    free = model.generate(torch.tensor([PROMPTS[1]]), **options).sequences[0]
    third = len(PROMPTS[1]) + 3
    word = tokenizer.decode(free[third - 1 : third])
    stopped = model.generate(torch.tensor([PROMPTS[1]]), **options, stop_strings=[word], tokenizer=tokenizer)
    assert stopped.sequences[0].tolist() == free[:third].tolist()


def test_the_pipeline_writes_the_texts_that_we_do(one: Path) -> None:
    model, tokenizer = load(one / "out"), AutoTokenizer.from_pretrained(one / "out", trust_remote_code=True)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu", batch_size=len(TEXTS))
    found = write(TEXTS, do_sample=False, max_new_tokens=10, return_full_text=False)
    expected = [tokenizer.decode(ids, skip_special_tokens=True) for ids in greedy(load_trained(one / "run")[0], BOS)]
    assert [texts[0]["generated_text"] for texts in found] == expected


class LowRank(torch.nn.Module):
    """A linear layer plus a product of two narrow ones, as adapters are."""

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("mixer", ["gdn2", "mamba2", "mamba3_mimo"])
def test_adapters_on_every_projection_train_and_act(tmp_path: Path, mixer: str) -> None:
    finished_run(tmp_path / "run", model_config(mixer, "hybrid"))
    model = load(export(tmp_path / "run", tmp_path / "out")).requires_grad_(False)
    batch = padded(PROMPTS, "left")
    before = model(**batch).logits
    for parent in list(model.model.blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, LowRank(child))
    model(**batch, labels=batch["input_ids"]).loss.backward()
    adapters = {name: p for name, p in model.named_parameters() if ".up." in name or ".down." in name}
    assert adapters and all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.values())
    assert all(p.grad is None for name, p in model.named_parameters() if name not in adapters)
    assert model.dtype == torch.float32 and not torch.allclose(model(**batch).logits, before, atol=1e-3)


def test_lora_of_peft_is_saved_loaded_and_merged(one: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, batch = load(one / "out"), padded(PROMPTS, "left")
    settings = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    adapted(**batch, labels=batch["input_ids"]).loss.backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(load(one / "out"), tmp_path)
    logits = adapted(**batch).logits
    assert torch.equal(again(**batch).logits, logits)
    torch.testing.assert_close(again.merge_and_unload()(**batch).logits, logits, **TOLERANCE)


@torch.no_grad()
def test_the_cache_has_its_older_and_its_newer_name_and_unknown_arguments_are_ignored(one: Path) -> None:
    model, tokens = load(one / "out"), torch.tensor(PROMPTS[:1])
    expected = model(tokens).logits[:, 2:]
    for name in ("past_key_values", "cache"):
        before = model(tokens[:, :2], use_cache=True)
        kept = before.cache if hasattr(before, "cache") else before.past_key_values
        after = model(tokens[:, 2:], **{name: kept}, an_argument_of_the_next_version=torch.ones(1)).logits
        torch.testing.assert_close(after, expected, **TOLERANCE)
    with pytest.raises(ValueError, match="two names of one argument"):
        model(tokens, cache=kept, past_key_values=kept)


def test_unsupported_arguments_are_refused(one: Path) -> None:
    model, tokens = load(one / "out"), torch.tensor(PROMPTS[:1])
    cache = model(tokens, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="attention_mask: shape"):
        model(tokens, attention_mask=torch.ones(1, 2))
    with pytest.raises(ValueError, match="input_ids: 2 rows, but (cache|past_key_values) has 1"):
        model(tokens.repeat(2, 1), past_key_values=cache)
    for name in ("inputs_embeds", "position_ids", "cu_seq_lens_q", "output_hidden_states"):
        with pytest.raises(ValueError, match=f"{name}: .*; leave it out"):
            model(tokens, **{name: torch.ones(1, 2, 64)})
    with pytest.raises(ValueError, match="cannot forget its last tokens"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(tokens, assistant_model=model, max_new_tokens=2)


def test_a_checkpoint_that_lacks_a_weight_is_refused(one: Path, tmp_path: Path) -> None:
    model = load(one / "out")
    state = model.state_dict()
    del state["model.blocks.0.mixer.A_log"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="GatedDeltaNet.A_log: not among the weights"):
        load(tmp_path)
