"""Gate values are those that the layers compute with; prompts mark the needle and the question."""

import pytest
import torch
from torch import Tensor

from harness.data.tokenizer import load_tokenizer
from harness.experiments.matching import matched_config
from harness.figures.gate_values import gates, prompt
from harness.lm.load import untrained_lm
from harness.model.language_model import LanguageModel, build_model
from mixers.gdn2 import gated_delta_rule_2
from mixers.gdn2 import layer as layer_module

VARIANTS = [
    {},
    {"erase_gate": "scalar"},
    {"write_gate": "scalar"},
    {"erase_range": 2},
    {"decay": "head", "erase_gate": "head", "write_gate": "tied"},
]


def model(options: dict) -> LanguageModel:
    built = build_model(matched_config("cpu-600k", "recurrent", "gdn2", options, vocab_size=4096), seed=0)
    with torch.no_grad():  # at initialisation all projections are small and every gate is near one half
        for block in built.blocks:
            for name, weight in block.mixer.named_parameters():
                if name in ("b_proj.weight", "w_proj.weight", "f_proj.1.weight", "a_proj.weight"):
                    weight.mul_(20)
    return built.eval()


@pytest.mark.parametrize("options", VARIANTS)
def test_the_gates_are_those_with_which_the_layers_compute(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    built, ids = model(options), torch.randint(4096, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        expected, _ = built.hidden(torch.tensor([ids]))
    found = gates(built, ids)
    assert [layer.layer for layer in found] == [0, 1] and found[0].erase.std() > 0.05
    given = iter(found)

    def replayed(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, **rest: object) -> object:
        own = next(given)
        rest = {key: value for key, value in rest.items() if key not in ("A_log", "dt_bias", "erase_range")}
        return gated_delta_rule_2(q, k, v, own.decay.log()[None], own.erase[None], own.write[None], **rest)

    monkeypatch.setattr(layer_module, "gated_delta_rule_2", replayed)
    with torch.no_grad():
        hidden, _ = built.hidden(torch.tensor([ids]))
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)  # fp32, through exp and log once more


def test_reading_the_gates_leaves_the_model_as_it_was() -> None:
    built = model({})
    gates(built, [1, 2, 3])
    assert not any(module._forward_hooks for module in built.modules())
    with pytest.raises(ValueError, match="mixer is 'kda', which has no such gates; use gdn2"):
        gates(untrained_lm("cpu-600k/kda").model, [1, 2])


def test_a_recall_prompt_marks_the_last_write_to_the_key_that_is_asked() -> None:
    found = prompt(load_tokenizer(), "overwrite", 4)
    (start, stop), (asked, end) = found.marks["needle"], found.marks["question"]
    assert (stop - start, end) == (2, len(found.ids)) and found.words[start] == found.words[asked]
    assert found.words[asked] not in found.words[stop:asked]
    assert len(found.words) == len(found.ids) == 1 + 2 * (8 + 4 * 4) + 2
    pair = prompt(load_tokenizer(), "interference", 2)
    assert pair.words[slice(*pair.marks["question"])] == pair.words[pair.marks["needle"][0] :][:2]


def test_a_needle_prompt_marks_the_sentence_and_the_question_about_it() -> None:
    tokenizer = load_tokenizer()
    found = prompt(tokenizer, "needle", 200)
    needle, question = (tokenizer.decode(found.ids[slice(*found.marks[name])]) for name in ("needle", "question"))
    assert needle.startswith(" One of the special magic numbers for") and question.endswith("provided text is")
    assert abs(len(found.ids) - 200) <= 4  # the prose is encoded again in two parts
    assert 60 < found.marks["needle"][0] < 120
    with pytest.raises(ValueError, match="size: 40 tokens leave no room for prose"):
        prompt(tokenizer, "needle", 40)
    with pytest.raises(ValueError, match="unknown task 'copy'; known: needle, mqar"):
        prompt(tokenizer, "copy", 4)
