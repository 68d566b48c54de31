"""Feeding sequences of different lengths to a model, and decoding from its recurrent state.

Where a state is kept, no sequence is padded: sequences of one length form a batch, others are packed one after the
other (`cu_seqlens`), what several begin with is read once, and finished rows leave the batch when enough have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.lm.prefixes import Beginning, tree
from harness.model.language_model import LanguageModel, ModelState

# Tokens read at once. On a CPU the results of more leave its caches, and memory for them comes fresh from the system
# every time, which costs as much as the products; any other device needs many to be busy.
CPU_TOKENS, DEVICE_TOKENS = 1024, 16384
BATCH_ROWS = 64
# A padded batch of so many tokens is worth ending when the next row would fill less than this part of its place.
ENOUGH_TOKENS, FILLED = 512, 0.85
# Rows that have ended are decoded on until no more than this part is alive: taking them out copies all other states.
ALIVE = 0.75


def tokens_at_once(model: LanguageModel) -> int:
    """How many tokens to read at once where the model is."""
    return CPU_TOKENS if model.embedding.weight.device.type == "cpu" else DEVICE_TOKENS


def advance(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    state: ModelState | None = None,
    tails: Sequence[int] | None = None,
) -> tuple[list[Tensor], ModelState]:
    """Feed each row its own tokens, at least one.

    rows: B token lists of any lengths. state: batched over B, None at the start of a text. tails: of each row, at how
    many last tokens hidden vectors are wanted; None is all.
    Returns the hidden vectors of each row, [T_i, D], and the state after the last token of each.
    """
    device = model.embedding.weight.device
    lengths = [len(row) for row in rows]
    tails = lengths if tails is None else tails
    wanted = _places(list(accumulate(lengths)), lengths, tails, device)
    if len(set(lengths)) == 1:
        tokens = torch.tensor([list(row) for row in rows], device=device)
        hidden, state = model.hidden(tokens, state, None, True, wanted)
    else:
        tokens = torch.tensor([token for row in rows for token in row], device=device)
        offsets = torch.tensor([0, *accumulate(lengths)], device=device)
        hidden, state = model.hidden(tokens[None], state, offsets, True, wanted)
    return list(hidden.flatten(0, -2).split(list(tails))), state


def _places(ends: Sequence[int], lengths: Sequence[int], tails: Sequence[int], device: torch.device) -> Tensor | None:
    """The places of the last tokens of rows that end there, or None where that is all."""
    if list(tails) == list(lengths):
        return None
    places = [place for end, tail in zip(ends, tails, strict=True) for place in range(end - tail, end)]
    return torch.tensor(places, dtype=torch.long, device=device)


def read(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    state: ModelState | None = None,
    tails: Sequence[int] | None = None,
) -> list[Tensor]:
    """The hidden vectors, [T_i, D], of rows behind which nothing follows; `state` and `tails` as in `advance`.

    Shorter rows are filled up at their end. What stands there comes after every token that counts, and no state is
    kept that it could reach.
    """
    device = model.embedding.weight.device
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    tails = lengths if tails is None else tails
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    ends = [place * longest + length for place, length in enumerate(lengths)]
    hidden, _ = model.hidden(tokens, state, wanted=_places(ends, [longest] * len(rows), tails, device))
    return list(hidden.flatten(0, -2).split(list(tails)))


def batches(lengths: Sequence[int], batch_tokens: int, batch_rows: int, padded: bool = False) -> list[list[int]]:
    """Indices of `lengths`, the longest first, in batches of at most so many tokens and rows; a longer one is alone.

    padded: each counts as much as the longest of its batch, and one much shorter than that begins the next batch, once
    there is enough in this one.
    """
    result: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        taken = lengths[result[-1][0]] if padded and result else lengths[index]
        wasteful = padded and tokens >= ENOUGH_TOKENS and lengths[index] < FILLED * taken
        if not result or tokens + taken > batch_tokens or len(result[-1]) == batch_rows or wasteful:
            result.append([])
            tokens, taken = 0, lengths[index]
        result[-1].append(index)
        tokens += taken
    return result


@dataclass(frozen=True)
class Group:
    """Texts to read on: their numbers, from which token each, and the row of `state` that each continues."""

    members: list[int]
    starts: list[int]
    rows: list[int]
    state: ModelState | None

    def entering(self, model: LanguageModel, part: Sequence[int]) -> ModelState | None:
        """The states that some of the texts, by their places in the group, go on from."""
        return None if self.state is None else model.index_state(self.state, [self.rows[k] for k in part])


def groups(
    model: LanguageModel, texts: Sequence[Sequence[int]], limits: Sequence[int], batch_tokens: int, batch_rows: int
) -> Iterator[Group]:
    """Every text once, in groups whose shared beginnings have been read; so many tokens and rows are read at once.

    limits: of each text, how many tokens at its start may be read as a beginning.
    """
    root = tree(texts, limits)
    if root.members:
        yield Group(root.members, [0] * len(root.members), [], None)

    def parts(found: list[tuple[int, int, Beginning]]) -> list[list[tuple[int, int, Beginning]]]:
        """Beginnings to read together. Those of most texts first, to be taken last: nothing waits for the state before
        them, so that however long a chain is, few states exist."""
        made = batches([b.stop - start for _, start, b in found], batch_tokens, batch_rows)
        chosen = [[found[k] for k in part] for part in made]
        return sorted(chosen, key=lambda part: -sum(b.texts for _, _, b in part))

    # What is still to be read: the row of a state, how many tokens it has seen, and the beginning that goes on from it.
    waiting = [(parts([(0, 0, b) for b in root.longer]), None)]
    while waiting:
        todo, state = waiting.pop()
        if not todo:
            continue
        part = todo.pop()
        entering = None if state is None else model.index_state(state, [row for row, _, _ in part])
        if todo:
            waiting.append((todo, state))
        del state
        _, after = advance(model, [texts[b.text][at : b.stop] for _, at, b in part], entering, [0] * len(part))
        del entering
        owners = [(i, b.stop, row) for row, (_, _, b) in enumerate(part) for i in b.members]
        if owners:
            members, starts, rows = map(list, zip(*owners, strict=True))
            yield Group(members, starts, rows, after)
        waiting.append(
            (parts([(row, b.stop, inner) for row, (_, _, b) in enumerate(part) for inner in b.longer]), after)
        )
        del after


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_tokens: Collection[int] = (),
    finished: Callable[[int, list[int]], bool] = lambda row, tokens: False,
    temperature: float = 0.0,
    seed: int = 0,
    batch_tokens: int | None = None,
    batch_rows: int = BATCH_ROWS,
) -> list[list[int]]:
    """Continue each prompt (a list of at least one token) by at most `max_new_tokens` tokens.

    A row ends before a stop token, and as soon as `finished` says so of its index and new tokens. temperature 0 takes
    the likeliest token; above it, row i samples from its own generator seeded with seed + i, so that what it draws does
    not depend on the rows beside it. Prompts are read at most `batch_tokens` at a time, by default as suits the
    device, and what they begin with in common once; `batch_rows` decode at a time. Raises ValueError for an empty
    prompt or a negative temperature.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("prompts: an empty prompt predicts nothing; start it with the BOS token")
    if temperature < 0:
        raise ValueError(f"temperature: {temperature} is negative; use 0 for greedy decoding")
    outputs: list[list[int]] = [[] for _ in prompts]
    if max_new_tokens < 1:
        return outputs
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    lengths = [len(prompt) for prompt in prompts]
    batch_tokens = batch_tokens or tokens_at_once(model)
    with torch.no_grad():
        # One batch decodes `batch_rows` rows, whatever its prompts hold in tokens; they are read in smaller ones.
        for batch in batches(lengths, sum(lengths), batch_rows):
            rows, hidden, state = _prompted(model, prompts, batch, batch_tokens, batch_rows)
            ended: set[int] = set()
            while True:
                tokens = pick(model.head(hidden), temperature, [generators[i] for i in rows])
                for i, token in zip(rows, tokens, strict=True):
                    if i in ended:
                        continue
                    if token not in stop_tokens:
                        outputs[i].append(token)
                        if len(outputs[i]) < max_new_tokens and not finished(i, outputs[i]):
                            continue
                    ended.add(i)
                alive = [k for k, i in enumerate(rows) if i not in ended]
                if not alive:
                    break
                if len(alive) <= ALIVE * len(rows):
                    rows, tokens = [rows[k] for k in alive], [tokens[k] for k in alive]
                    state = model.index_state(state, alive)
                hidden, state = model.hidden(torch.tensor(tokens, device=hidden.device)[:, None], state, None, True)
                hidden = hidden[:, 0]
    return outputs


def _prompted(
    model: LanguageModel, prompts: Sequence[Sequence[int]], batch: Sequence[int], batch_tokens: int, batch_rows: int
) -> tuple[list[int], Tensor, ModelState]:
    """The prompts of a batch in the order in which they were read, [B, D] behind their last tokens, and the states."""
    rows, last, states = [], [], []
    texts = [prompts[i] for i in batch]
    for group in groups(model, texts, [len(text) - 1 for text in texts], batch_tokens, batch_rows):
        rests = [texts[i][start:] for i, start in zip(group.members, group.starts, strict=True)]
        for part in batches([len(rest) for rest in rests], batch_tokens, batch_rows):
            hidden, state = advance(model, [rests[k] for k in part], group.entering(model, part), [1] * len(part))
            rows += [batch[group.members[k]] for k in part]
            last += hidden
            states.append(state)
    return rows, torch.cat(last), model.cat_states(states)


def pick(logits: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> list[int]:
    """The next token of each row of logits [B, V]: the likeliest, or a sample of softmax(logits / temperature)."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    probabilities = torch.softmax(logits.float() / temperature, -1).cpu()
    return [int(torch.multinomial(p, 1, generator=g)) for p, g in zip(probabilities, generators, strict=True)]


def stop_at(
    tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], enough: Sequence[Callable[[str], bool] | None] = ()
) -> Callable[[int, list[int]], bool]:
    """Whether new tokens have come to a stop string, for `generate`; `cut` then takes it off the text.

    enough: for each row, whether its text up to here is all that is wanted; None where that cannot be said.
    """
    # A token decodes to at least one byte, so these last tokens hold any stop string that ends with the newest.
    tail = max((len(s.encode()) for s in stop), default=0) + 4

    def finished(row: int, tokens: list[int]) -> bool:
        if stop:
            text = tokenizer.decode(tokens[-tail:], skip_special_tokens=True)
            if any(s in text for s in stop):
                return True
        said = enough[row] if enough else None
        return said is not None and said(tokenizer.decode(tokens, skip_special_tokens=True))

    return finished


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]


def generate_text(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The continuation of a prompt, up to a stop string or the end of the document (the next BOS or an EOS)."""
    tokens = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    (output,) = generate(
        model, [tokens], max_new_tokens, ends, stop_at(tokenizer, stop), temperature=temperature, seed=seed
    )
    return cut(tokenizer.decode(output, skip_special_tokens=True), stop)
