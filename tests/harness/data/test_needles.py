"""Training rows in RULER's needle formats, read back as text: their answers, their prose, and the suite's own score."""

import hashlib
from random import Random

import pytest
import torch

from harness.data import needles, synthetic
from harness.data.corpus import documents
from harness.data.needles import FORMATS, NOISE, split_sentences
from harness.data.shards import TokenData
from harness.data.tokenizer import load_tokenizer
from suites import ruler
from suites.ruler.samples import draw_samples
from suites.ruler.tasks import Sample
from tests.suites.ruler.reading import Reader, solve
from tests.suites.ruler.reading import needles as read_needles

TOKENIZER = load_tokenizer()


@pytest.fixture(scope="module")
def data(small_data) -> TokenData:
    return TokenData(small_data)


def rows(task: str, data: TokenData, seed: int = 0, start: int = 0, count: int = 4, seq_len: int = 320):
    return synthetic.rows(task, seed, start, count, seq_len, TOKENIZER, data)


def texts(task: str, data: TokenData, count: int = 4, seq_len: int = 320) -> list[tuple[str, str]]:
    """Prompt and counted targets of rows, as text. Asserts that both are whole: what is behind the answer is BOS."""
    read = []
    for row, mask in zip(*rows(task, data, count=count, seq_len=seq_len), strict=True):
        (places,) = torch.where(mask)
        first, last = int(places[0]) + 1, int(places[-1]) + 1
        assert len(places) == last - first + 1 and row[0] == TOKENIZER.bos_token_id
        assert set(row[last + 1 :].tolist()) <= {TOKENIZER.bos_token_id}
        read.append((TOKENIZER.decode(row[1:first]), TOKENIZER.decode(row[first : last + 1])))
    return read


def hay(prompt: str) -> str:
    """The context of a prompt without its needles, on one line."""
    context = prompt.split("\n", 1)[1].rpartition("\n")[0]
    for kind, key, value in read_needles(context):
        context = context.replace(needles.NEEDLE.format(kind=kind, key=key, value=value), "")
    return " ".join(context.split())


@pytest.mark.parametrize("task", FORMATS)
def test_the_counted_targets_are_the_answer_that_reading_the_prompt_gives(task: str, data: TokenData) -> None:
    for prompt, target in texts(task, data):
        (answer,) = solve(prompt)
        assert target == f" {answer}"
        assert len(read_needles(prompt)) == FORMATS[task].keys


@pytest.mark.parametrize("task", FORMATS)
def test_the_suite_gives_full_marks_to_a_model_that_says_what_rows_train_it_to_say(task: str, data: TokenData) -> None:
    targets = dict(texts(task, data))

    class Trained(Reader):
        def generate_until(self, requests, disable_tqdm=True):
            return [targets[request.args[0]] for request in requests]

    samples = [Sample(prompt, None, tuple(solve(prompt)), targets[prompt], 321) for prompt in targets]
    found = ruler.score_samples(Trained(sees=True), task, 320, "corpus", samples, ruler.Config(), None)
    assert [m.value for m in found if m.metric == "contains"] == [1.0]


@pytest.mark.parametrize("task", FORMATS)
def test_a_prompt_is_worded_as_the_suite_words_it(task: str, data: TokenData) -> None:
    (sample,) = draw_samples(task, 600, 1, 0, TOKENIZER, source="corpus", steps="unit")
    asked = solve(sample.prompt)[0]
    for text, answer in [(sample.prompt, asked), *((text, solve(text)[0]) for text, _ in texts(task, data, count=2))]:
        (own,) = [(kind, key) for kind, key, value in read_needles(text) if value == answer]
        kind, key = own
        head, tail = needles.TEMPLATE.format(kind=kind, context="|", key=key).split("|")
        assert text.startswith(head) and text.endswith(tail + needles.PREFIX.format(kind=kind, key=key))


@pytest.mark.parametrize("task", FORMATS)
def test_a_row_is_a_function_of_its_task_seed_and_number(task: str, data: TokenData) -> None:
    tokens, counted = rows(task, data, seed=3, count=3)
    for number in (2, 0):
        again, mask = rows(task, data, seed=3, start=number, count=1)
        assert torch.equal(again[0], tokens[number]) and torch.equal(mask[0], counted[number])
    assert not torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], rows(task, data, seed=4, count=1)[0][0])


def test_no_needle_of_training_is_one_of_the_evaluations(data: TokenData) -> None:
    trained = {needle for prompt, _ in texts("mk_niah_1", data, count=16) for needle in read_needles(prompt)}
    scored = draw_samples("mk_niah_1", 320, 16, 0, TOKENIZER, source="corpus", steps="unit", max_new_tokens=16)
    assert len(trained) == 64
    assert not trained & {needle for sample in scored for needle in read_needles(sample.prompt)}


@pytest.mark.parametrize("task", [task for task, form in FORMATS.items() if form.hay == "essay"])
def test_essays_are_consecutive_words_of_the_training_split(task: str, data: TokenData) -> None:
    stream = data.tokens("train")
    trained = " ".join(TOKENIZER.decode(stream[:].tolist()).replace(TOKENIZER.bos_token, " ").split())
    held_out = " ".join(" ".join(d.text for d in documents("test", ["austen"])).split())
    found = [hay(prompt) for prompt, _ in texts(task, data)]
    assert all(text in trained and text not in held_out and len(text) > 40 for text in found)
    assert len(set(found)) == len(found)


def test_noise_is_rulers_line_and_needs_no_text() -> None:
    for prompt, _ in texts("s_niah_1", None):
        assert hay(prompt).replace(NOISE, "").strip() == ""


@pytest.mark.parametrize("seq_len", [320, 640])
@pytest.mark.parametrize("task", FORMATS)
def test_a_row_is_filled_to_within_one_unit_of_its_context(task: str, seq_len: int, data: TokenData) -> None:
    tokens, _ = rows(task, data, seq_len=seq_len)
    assert tokens.shape == (4, seq_len + 1)
    left = (tokens == TOKENIZER.bos_token_id).sum(1) - 1
    line = len(TOKENIZER.encode(f"\n{NOISE}", add_special_tokens=False))
    # Less than one more unit, with SPARE: a line of noise, or a word, of which Austen's have up to ten tokens.
    assert int(left.max()) < (line if task == "s_niah_1" else 10) + needles.SPARE


@pytest.mark.parametrize("task", FORMATS)
def test_the_shortest_row_that_is_asked_for_holds_a_sample_and_a_shorter_one_is_refused(
    task: str, data: TokenData
) -> None:
    least = needles.shortest_row(task, TOKENIZER, data)
    assert rows(task, data, seq_len=least)[1].any(1).all()
    synthetic.check_rows([task], least, TOKENIZER, data)
    with pytest.raises(ValueError, match=f"seq_len: {least - 1} is too short for {task}; use at least {least}"):
        synthetic.check_rows([task], least - 1, TOKENIZER, data)
    with pytest.raises(ValueError, match=f"seq_len: 64 is too short for {task}; use at least "):
        rows(task, data, seq_len=64)


def test_text_that_is_shorter_than_a_row_is_refused(data: TokenData) -> None:
    with pytest.raises(ValueError, match="seq_len: 10000000 .* are more than the .* of the train split"):
        synthetic.check_rows(["s_niah_2"], 10_000_000, TOKENIZER, data)
    synthetic.check_rows(["s_niah_1"], 10_000_000, TOKENIZER, None)


def test_rows_are_those_that_runs_were_trained_on(data: TokenData) -> None:
    digest = hashlib.sha256()
    for task in FORMATS:
        for part in rows(task, data, seed=1, start=2, count=2):
            digest.update(part.numpy().tobytes())
    assert digest.hexdigest() == "5ecd9e8870699ac272f64063b611fa6479a9a9f16458dff1c200430e73f3d645"


def test_sentences_of_a_text_restore_it_and_end_at_no_title() -> None:
    parts = split_sentences('Mr. J. Knightley came. "Did he?" she asked. It was 3.5 miles! Yes.')
    assert parts == ("Mr. J. Knightley came.", '"Did he?" she asked.', "It was 3.5 miles!", "Yes.")


def test_keys_and_values_are_distinct() -> None:
    for kind in ("word", "uuid"):
        assert len(set(needles.draw_keys(Random(0), kind, 200))) == 200
    for kind in ("number", "uuid"):
        assert len(set(needles.draw_values(Random(0), kind, 200))) == 200
