"""The lm-eval model agrees with lm-eval's own HFLM, with a plain forward pass and with rereading the prefix."""

from __future__ import annotations

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from harness.lm.export import to_llama
from harness.lm.generate import NotFinite
from harness.lm.mixer_lm import MixerLM
from harness.model.language_model import build_model
from tests.harness.lm.models import CONTEXTS, MODELS, TOLERANCE, ask, greedy_by_rereading, tokenizer

ENDINGS = [" went up", " must be in want of a wife.", " 21", " the the the", " went up to the hill of the LORD"]
PAIRS = [(c, e) for c in CONTEXTS for e in ENDINGS] + [("One lonely context with", " an ending"), ("", "No context.")]
DOCUMENTS = ["A short one.", "", " ".join(f"verse {i} of the psalm," for i in range(40)), "The same length again?"]


def plain_score(lm: MixerLM, context: list[int], ending: list[int]) -> tuple[float, bool]:
    """The score by one forward pass over the whole text, without state."""
    tokens = torch.tensor([context + ending])
    with torch.no_grad():
        logits = lm.model(tokens[:, :-1])[0][0, len(context) - 1 :]
    chosen = logits.log_softmax(-1).gather(1, tokens[0, len(context) :, None])
    return chosen.sum().item(), bool((logits.argmax(-1) == tokens[0, len(context) :]).all())


def hflm(ours: MixerLM, max_length: int, add_bos: bool = True) -> HFLM:
    """lm-eval's own class with the same weights, in fp32."""
    return HFLM(
        pretrained=to_llama(ours.model, ours.prefix_token_id, 512),
        tokenizer=tokenizer(add_bos),
        add_bos_token=add_bos,
        batch_size=4,
        max_length=max_length,
        device="cpu",
        dtype="float32",
    )


@pytest.fixture(scope="module")
def ours() -> MixerLM:
    return MixerLM(MODELS["attention"](), tokenizer())


@pytest.fixture(scope="module")
def theirs(ours: MixerLM) -> HFLM:
    return hflm(ours, 512)


class TestAgainstHFLM:
    def test_log_likelihoods_and_greediness_agree(self, ours: MixerLM, theirs: HFLM) -> None:
        greedy = greedy_by_rereading(ours, ours.tok_encode(CONTEXTS[0]), 3)
        pairs = [*PAIRS, (CONTEXTS[0], ours.tokenizer.decode(greedy))]
        mine = ours.loglikelihood(ask("loglikelihood", pairs))
        other = theirs.loglikelihood(ask("loglikelihood", pairs), disable_tqdm=True)
        assert [v for v, _ in mine] == pytest.approx([v for v, _ in other], abs=TOLERANCE)
        assert [g for _, g in mine] == [g for _, g in other]
        assert len({round(v, 3) for v, _ in mine}) > len(PAIRS) // 2

    def test_contexts_that_do_not_fit_lose_the_same_beginning(self, ours: MixerLM) -> None:
        short = MixerLM(ours.model, ours.tokenizer, max_length=12)
        mine = short.loglikelihood(ask("loglikelihood", PAIRS))
        other = hflm(ours, 12).loglikelihood(ask("loglikelihood", PAIRS), disable_tqdm=True)
        assert [v for v, _ in mine] == pytest.approx([v for v, _ in other], abs=TOLERANCE)
        whole = ours.loglikelihood(ask("loglikelihood", PAIRS))
        assert max(abs(a - b) for (a, _), (b, _) in zip(mine, whole, strict=True)) > 0.01

    @pytest.mark.parametrize("max_length", [16, 512])
    def test_rolling_log_likelihoods_agree(self, ours: MixerLM, max_length: int) -> None:
        # HFLM puts its own prefix token before a document, so a tokenizer that adds BOS would give it two.
        theirs = hflm(ours, max_length, add_bos=False)
        arguments = [(d,) for d in DOCUMENTS]
        mine = MixerLM(ours.model, ours.tokenizer, max_length=max_length).loglikelihood_rolling(
            ask("loglikelihood_rolling", arguments)
        )
        other = theirs.loglikelihood_rolling(ask("loglikelihood_rolling", arguments), disable_tqdm=True)
        # Sums over up to 300 tokens of about 10 nats each: relative, at fp32's accumulated rounding.
        assert mine == pytest.approx(other, rel=1e-5, abs=TOLERANCE)

    def test_greedy_text_agrees(self, ours: MixerLM, theirs: HFLM) -> None:
        free = [(c, {"until": [], "max_gen_toks": 24, "do_sample": False}) for c in CONTEXTS]
        texts = ours.generate_until(ask("generate_until", free))
        assert texts == theirs.generate_until(ask("generate_until", free), disable_tqdm=True)
        assert all(texts)
        stop = texts[0][len(texts[0]) // 2 :][:3]
        stopped = [(c, {"until": [stop], "max_gen_toks": 24, "do_sample": False}) for c in CONTEXTS]
        cut = ours.generate_until(ask("generate_until", stopped))
        assert cut == theirs.generate_until(ask("generate_until", stopped), disable_tqdm=True)
        assert len(cut[0]) < len(texts[0]) and texts[0].startswith(cut[0])


def test_endings_that_share_a_context_score_as_in_one_forward_pass(lm: MixerLM) -> None:
    requests = [(pair, *lm._encode_pair(*pair)) for pair in PAIRS if pair[0]]
    scores = lm._loglikelihood_tokens(requests)
    for (_, context, ending), (value, greedy) in zip(requests, scores, strict=True):
        expected = plain_score(lm, context, ending)
        assert value == pytest.approx(expected[0], abs=TOLERANCE)
        assert greedy == expected[1]


def test_an_ending_is_greedy_only_when_every_token_of_it_is(lm: MixerLM) -> None:
    context = lm.tok_encode(CONTEXTS[1])
    best = greedy_by_rereading(lm, context, 3)
    other = (best[0] + 1) % len(lm.tokenizer)
    endings = [best, [*best[:2], other], [other, *greedy_by_rereading(lm, [*context, other], 2)], best[:1], [other]]
    scores = lm._loglikelihood_tokens([(None, context, ending) for ending in endings])
    assert [greedy for _, greedy in scores] == [True, best[2] == other, False, True, False]


@pytest.mark.parametrize("batch_tokens, batch_rows", [(1, 1), (40, 3), (4096, 64)])
def test_scores_and_text_do_not_depend_on_the_batch(lm: MixerLM, batch_tokens: int, batch_rows: int) -> None:
    other = MixerLM(lm.model, lm.tokenizer, batch_tokens=batch_tokens, batch_rows=batch_rows)
    pairs = ask("loglikelihood", PAIRS)
    documents = ask("loglikelihood_rolling", [(d,) for d in DOCUMENTS])
    prompts = ask("generate_until", [(c, {"max_gen_toks": 12, "until": ["\n"]}) for c in CONTEXTS])
    values = [v for v, _ in lm.loglikelihood(pairs)]
    assert [v for v, _ in other.loglikelihood(pairs)] == pytest.approx(values, abs=TOLERANCE)
    # Rolling sums are larger, see above.
    assert other.loglikelihood_rolling(documents) == pytest.approx(lm.loglikelihood_rolling(documents), rel=1e-5)
    assert other.generate_until(prompts) == lm.generate_until(prompts)


def test_a_document_read_in_pieces_scores_as_read_whole(lm: MixerLM) -> None:
    lm.batch_tokens, lm.batch_rows = 7, 2
    scores = lm.loglikelihood_rolling(ask("loglikelihood_rolling", [(d,) for d in DOCUMENTS]))
    for document, score in zip(DOCUMENTS, scores, strict=True):
        ids = lm.tok_encode(document, add_special_tokens=False)
        expected = plain_score(lm, [lm.prefix_token_id], ids)[0] if ids else 0.0
        assert score == pytest.approx(expected, rel=1e-5, abs=TOLERANCE)


def test_bos_is_read_once_and_never_scored(lm: MixerLM) -> None:
    bos = lm.tokenizer.bos_token
    assert lm.tok_encode("The king")[0] == lm.prefix_token_id
    assert lm.tok_encode(f"{bos}The king") == lm.tok_encode("The king")
    assert lm.loglikelihood_rolling(ask("loglikelihood_rolling", [("",)])) == [0.0]


@pytest.mark.parametrize(
    "options, named",
    [({"temperature": 0.7}, "temperature"), ({"do_sample": True}, "do_sample"), ({"top_p": 0.9}, "top_p")],
)
def test_sampling_is_refused_by_name(lm: MixerLM, options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"generation_kwargs.*{named}"):
        lm.generate_until(ask("generate_until", [("The king", {"max_gen_toks": 4, **options})]))


def test_what_cannot_be_scored_is_named() -> None:
    built = MODELS["attention"]()
    with pytest.raises(ValueError, match="max_length: 2 tokens cannot hold a continuation of"):
        MixerLM(built, tokenizer(), max_length=2).loglikelihood(ask("loglikelihood", [PAIRS[1]]))
    with pytest.raises(ValueError, match="max_length: 8 leaves no context next to 8 new tokens"):
        MixerLM(built, tokenizer(), max_length=8).generate_until(ask("generate_until", [("a", {"max_gen_toks": 8})]))
    small = build_model(built.config.model_copy(update={"vocab_size": 16}), 0)
    with pytest.raises(ValueError, match="vocab_size: 16 is less than the tokenizer's"):
        MixerLM(small, tokenizer())


def test_decoding_ends_once_the_text_holds_the_answer(lm: MixerLM) -> None:
    options = {"until": ["\n"], "max_gen_toks": 20}
    whole = lm.generate_until(ask("generate_until", [(c, dict(options)) for c in CONTEXTS]))
    wanted = [[text[2:5].upper(), text[4:7]] for text in whole]
    early = lm.generate_until(
        ask("generate_until", [(c, options | {"enough": [["\0"], w]}) for c, w in zip(CONTEXTS, wanted, strict=True)])
    )
    for text, short, strings in zip(whole, early, wanted, strict=True):
        assert text.startswith(short) and len(short) < len(text)
        assert all(s.lower() in short.lower() for s in strings)
    never = lm.generate_until(
        ask("generate_until", [(c, options | {"enough": [["\0"], [CONTEXTS[0], "\0"]]}) for c in CONTEXTS])
    )
    assert never == whole


@pytest.mark.parametrize("mixer", MODELS)
def test_the_likeliest_tokens_after_positions_are_those_of_a_plain_forward_pass(mixer: str) -> None:
    model = MODELS[mixer]()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, model.config.vocab_size, (7, 20), generator=generator)
    positions = torch.stack([torch.randperm(20, generator=generator)[:3] for _ in range(7)])
    with torch.no_grad():
        expected = model.eval()(inputs)[0].argmax(-1).gather(1, positions)
    for limits in ({}, {"batch_rows": 3}, {"batch_tokens": 50}, {"batch_tokens": 5}):
        assert torch.equal(MixerLM(model, tokenizer(), **limits).likeliest(inputs, positions), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_no_score_and_names_task_and_document(value: float) -> None:
    lm = MixerLM(MODELS["gated_deltanet"](), tokenizer())
    (token,) = lm.tokenizer.encode(" wish", add_special_tokens=False)[:1]
    lm.model.embedding.weight.data[token] = value  # only texts with this token are lost
    sound, lost = CONTEXTS[0], CONTEXTS[0] + " wish"
    options = {"until": ["\n"], "max_gen_toks": 3}
    for kind, texts in (
        ("loglikelihood", [(sound, " a"), (lost, " a")]),
        ("loglikelihood_rolling", [(sound,), (f"{lost} a",)]),
        ("generate_until", [(sound, options), (lost, options)]),
    ):
        getattr(lm, kind)(ask(kind, texts[:1]))
        with pytest.raises(NotFinite, match="test, sample 1: the model's output is not finite"):
            getattr(lm, kind)(ask(kind, texts))
    rows = torch.tensor([[1, 2, 3], [1, token, 3]])
    with pytest.raises(NotFinite, match="rows, sample 1: "):
        lm.likeliest(rows, torch.tensor([[2], [2]]))
