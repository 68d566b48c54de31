"""Decoding: the sizes of states, what is timed, and that it continues what was read."""

import pytest
import torch

from harness.experiments.matching import matched_config
from harness.experiments.schema import TrainConfig
from harness.model.language_model import LanguageModel, build_model
from suites import decode
from suites.decode import Config, Decode
from suites.registry import suite_config
from suites.shared.timing import Shape

TINY = Config(shapes=[Shape(batch=1, length=16), Shape(batch=2, length=48)], new_tokens=2, windows=2)


def tiny(mixer: str, layout: str = "recurrent") -> LanguageModel:
    return build_model(matched_config("cpu-600k", layout, mixer), seed=0)


def test_a_recurrent_state_stays_as_large_and_keys_and_values_grow_with_the_context() -> None:
    sizes = {}
    for mixer, layout in (("gdn2", "recurrent"), ("attention", "attention")):
        found = {(m.task, m.metric, m.length): m for m in Decode().measure(tiny(mixer, layout), TrainConfig(), TINY)}
        assert len(found) == 6
        sizes[mixer] = [found[t, "state_bytes", n].value for t, n in (("batch_1", 16), ("batch_2", 48))]
        for metric in ("prefill_tokens_per_second", "decode_tokens_per_second"):
            speed = found["batch_2", metric, 48]
            assert speed.value > 0 and speed.n == 2 and speed.stderr >= 0
        assert found["batch_2", "state_bytes", 48].settings["batch"] == 2
    assert sizes["gdn2"][0] == sizes["gdn2"][1]
    # Two layers, keys and values of 64 floats for each token, and 8 bytes for how many there were; of one row.
    assert sizes["attention"] == [2 * (16 * 2 * 64 * 4 + 8), 2 * (48 * 2 * 64 * 4 + 8)]


@pytest.mark.parametrize("mixer", ["gdn2", "attention"])
def test_a_context_read_in_parts_of_the_batch_is_the_same_context(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(mixer, "attention" if mixer == "attention" else "recurrent").eval()
    tokens = torch.randint(4096, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, _ = decode.prefill(model, tokens)
        monkeypatch.setattr(decode, "tokens_at_once", lambda model: 40)
        parts, state = decode.prefill(model, tokens)
        expected, _ = model.hidden(tokens)
        following, _ = model.hidden(torch.cat([tokens, tokens[:, :1]], 1))
        step, _ = model.hidden(tokens[:, :1], state, None, True)
    # fp32, other sizes of matrix products: rounding alone.
    torch.testing.assert_close(whole, expected[:, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(step[:, 0], following[:, -1], rtol=1e-4, atol=1e-4)


def test_a_shape_that_does_not_fit_the_memory_is_a_result() -> None:
    # 8·10¹⁵ bytes of tokens: more than any address space, so that the allocator itself refuses.
    (found,) = Decode().measure(tiny("gdn2"), TrainConfig(), Config(shapes=[Shape(batch=10**12, length=1000)]))
    assert (found.metric, found.value, found.length) == ("decode_out_of_memory", 1.0, 1000)


def test_a_shape_is_listed_once() -> None:
    with pytest.raises(ValueError, match="suites.decode.shapes: 1 × 8 is listed twice"):
        suite_config("decode", {"shapes": [{"batch": 1, "length": 8}] * 2})
