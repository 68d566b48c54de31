"""Feed sequences of different lengths to a model, and decode from its recurrent state.

Where a state is kept, no sequence is padded: sequences of equal length form a batch, others are packed end to end
(`cu_seqlens`). A prefix that several texts share is read once. Finished rows leave the batch in groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.lm.prefixes import Prefix, tree
from harness.model.language_model import LanguageModel, ModelState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens read at once. On a CPU, the results of more tokens do not fit the caches, and allocating memory for them costs
# as much as the matrix products. Any other device needs many tokens to be busy.
CPU_TOKENS, DEVICE_TOKENS = 1024, 16384
BATCH_ROWS = 64
# A padded batch of at least ENOUGH_TOKENS ends when the next row would fill less than FILLED of its padded length.
ENOUGH_TOKENS, FILLED = 512, 0.85
# Finished rows stay in the batch until at most this fraction is alive, since removing them copies all other states.
ALIVE = 0.75


class NotFinite(RuntimeError):
    """A model's output is NaN or infinite. An argmax over it would still name a token, and so a plausible score.

    index: number of the text among those that were asked about.
    """

    def __init__(self, index: int, task: str = "prompts"):
        super().__init__(
            f"{task}, sample {index}: the model's output is not finite, so that it has no score; look at its weights, "
            "and at its mixer with `run.py check`"
        )
        self.index = index


def tokens_at_once(model: LanguageModel) -> int:
    """Number of tokens to read at once on the model's device."""
    return CPU_TOKENS if model.embedding.weight.device.type == "cpu" else DEVICE_TOKENS


def advance(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    state: ModelState | None = None,
    tails: Sequence[int] | None = None,
) -> tuple[list[Tensor], ModelState]:
    """Read the tokens of each row and return its state.

    rows: B token lists of any length from 1. state: batched over B; None at the start of a text. tails: for each row,
    the number of last tokens whose hidden vectors are wanted; None means all.
    Returns the hidden vectors of each row, [T_i, D], and the state after the last token of each row.
    """
    device = model.embedding.weight.device
    lengths = [len(row) for row in rows]
    tails = lengths if tails is None else tails
    wanted = _last_positions(list(accumulate(lengths)), lengths, tails, device)
    if len(set(lengths)) == 1:
        tokens = torch.tensor([list(row) for row in rows], device=device)
        hidden, state = model.hidden(tokens, state, None, True, wanted)
    else:
        tokens = torch.tensor([token for row in rows for token in row], device=device)
        offsets = torch.tensor([0, *accumulate(lengths)], device=device)
        hidden, state = model.hidden(tokens[None], state, offsets, True, wanted)
    return list(hidden.flatten(0, -2).split(list(tails))), state


def _last_positions(
    ends: Sequence[int], lengths: Sequence[int], tails: Sequence[int], device: torch.device
) -> Tensor | None:
    """Positions of the last `tails` tokens of rows that end before positions `ends`; None if that is every token."""
    if list(tails) == list(lengths):
        return None
    positions = [position for end, tail in zip(ends, tails, strict=True) for position in range(end - tail, end)]
    return torch.tensor(positions, dtype=torch.long, device=device)


def read(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    state: ModelState | None = None,
    tails: Sequence[int] | None = None,
) -> list[Tensor]:
    """Read rows whose state is not needed afterwards. Returns the hidden vectors of each row, [T_i, D].

    `rows`, `state` and `tails` as in `advance`. Shorter rows are padded at the end: the model is causal and no state is
    kept, so the padding reaches no result.
    """
    device = model.embedding.weight.device
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    tails = lengths if tails is None else tails
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    ends = [row * longest + length for row, length in enumerate(lengths)]
    hidden, _ = model.hidden(tokens, state, wanted=_last_positions(ends, [longest] * len(rows), tails, device))
    return list(hidden.flatten(0, -2).split(list(tails)))


def batches(lengths: Sequence[int], batch_tokens: int, batch_rows: int, padded: bool = False) -> list[list[int]]:
    """Divide sequences into batches of at most `batch_tokens` tokens and `batch_rows` rows, the longest first.

    Returns indices into `lengths`. A sequence longer than `batch_tokens` gets a batch of its own. padded: each sequence
    counts with the length of the longest in its batch, and one much shorter starts the next batch once this one has
    enough tokens.
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
    """Texts whose shared prefixes have been read.

    members: numbers of the texts. starts: for each, the number of tokens already read. rows: for each, the row of
    `state` that it continues from. state: None if nothing has been read.
    """

    members: list[int]
    starts: list[int]
    rows: list[int]
    state: ModelState | None

    def initial_state(self, model: LanguageModel, part: Sequence[int]) -> ModelState | None:
        """The states from which some texts continue. part: their indices in the group."""
        return None if self.state is None else model.index_state(self.state, [self.rows[k] for k in part])


def groups(
    model: LanguageModel, texts: Sequence[Sequence[int]], limits: Sequence[int], batch_tokens: int, batch_rows: int
) -> Iterator[Group]:
    """Read the prefixes that texts share, once each, and yield every text in one group.

    limits: for each text, the largest number of leading tokens that may be read as a prefix. batch_tokens, batch_rows:
    limits on what is read at once.
    """
    root = tree(texts, limits)
    if root.members:
        yield Group(root.members, [0] * len(root.members), [], None)

    def parts(unread: list[tuple[int, int, Prefix]]) -> list[list[tuple[int, int, Prefix]]]:
        """Prefixes to read together. The part with the most texts comes first and is taken last, when the state before
        it can be dropped. Few states exist at a time, however long a chain is."""
        batched = batches([b.stop - start for _, start, b in unread], batch_tokens, batch_rows)
        chosen = [[unread[k] for k in part] for part in batched]
        return sorted(chosen, key=lambda part: -sum(b.texts for _, _, b in part))

    # Unread prefixes: the row of the state that each continues from, the tokens that row has seen, and the prefix.
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
    """Continue each prompt, a list of at least one token, by at most `max_new_tokens` tokens.

    stop_tokens: a row ends before any of these. finished: called with a row's index and its new tokens; the row ends
    when it returns True. temperature: 0 takes the likeliest token; above 0, row i samples from its own generator,
    seeded with seed + i, so its tokens do not depend on the other rows. batch_tokens: prompt tokens read at once, by
    default as suits the device. batch_rows: rows decoded at once. A prefix that prompts share is read once.
    Returns the new tokens of each prompt. Raises ValueError for an empty prompt or a temperature that is none, and
    NotFinite if the logits of a prompt that has not ended are not finite.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("prompts: an empty prompt predicts nothing; start it with the BOS token")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature: {temperature} is not a finite number from 0; use 0 for greedy decoding")
    outputs: list[list[int]] = [[] for _ in prompts]
    if max_new_tokens < 1:
        return outputs
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    lengths = [len(prompt) for prompt in prompts]
    batch_tokens = batch_tokens or tokens_at_once(model)
    with torch.no_grad():
        # A batch decodes `batch_rows` rows, however long their prompts are; the prompts are read in smaller batches.
        for batch in batches(lengths, sum(lengths), batch_rows):
            rows, hidden, state = _read_prompts(model, prompts, batch, batch_tokens, batch_rows)
            ended: set[int] = set()
            while True:
                tokens, finite = pick(model.head(hidden), temperature, [generators[i] for i in rows])
                for i, token, sound in zip(rows, tokens, finite, strict=True):
                    if i in ended:
                        continue
                    if not sound:
                        raise NotFinite(i)
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


def _read_prompts(
    model: LanguageModel, prompts: Sequence[Sequence[int]], batch: Sequence[int], batch_tokens: int, batch_rows: int
) -> tuple[list[int], Tensor, ModelState]:
    """Read a batch of prompts. Returns, in the order read, their indices, last hidden vectors [B, D] and states."""
    rows, last, states = [], [], []
    texts = [prompts[i] for i in batch]
    for group in groups(model, texts, [len(text) - 1 for text in texts], batch_tokens, batch_rows):
        rests = [texts[i][start:] for i, start in zip(group.members, group.starts, strict=True)]
        for part in batches([len(rest) for rest in rests], batch_tokens, batch_rows):
            hidden, state = advance(model, [rests[k] for k in part], group.initial_state(model, part), [1] * len(part))
            rows += [batch[group.members[k]] for k in part]
            last += hidden
            states.append(state)
    return rows, torch.cat(last), model.cat_states(states)


def pick(logits: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> tuple[list[int], list[bool]]:
    """The next token of each row of logits [B, V]: the likeliest, or a draw from softmax(logits / temperature).

    Returns the tokens, and whether each row is finite; the token of a row that is not means nothing.
    """
    tokens, finite = likeliest(logits)
    if temperature == 0:
        return tokens.tolist(), finite.tolist()
    probabilities = torch.softmax(logits.float() / temperature, -1).cpu()
    drawn = [
        int(torch.multinomial(p, 1, generator=g)) if sound else 0
        for p, g, sound in zip(probabilities, generators, finite.tolist(), strict=True)
    ]
    return drawn, finite.tolist()


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest token of each row of logits [N, V], and whether the row is finite, each [N].

    argmax takes NaN for the largest, so that the chosen logit tells. A logit of -inf rules a token out and is allowed.
    """
    tokens = logits.argmax(-1, keepdim=True)
    return tokens[:, 0], logits.gather(-1, tokens)[:, 0].isfinite()


def stop_at(
    tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], enough: Sequence[Callable[[str], bool] | None] = ()
) -> Callable[[int, list[int]], bool]:
    """Make a `finished` for `generate` that ends a row at a stop string; `cut` then removes it from the text.

    enough: for each row, a function that returns True once the text holds all that is wanted; None for no such check.
    """
    # A token decodes to at least one byte, so this many tokens hold any stop string that ends in the newest token.
    tail = max((len(s.encode()) for s in stop), default=0) + 4

    def finished(row: int, tokens: list[int]) -> bool:
        if stop:
            text = tokenizer.decode(tokens[-tail:], skip_special_tokens=True)
            if any(s in text for s in stop):
                return True
        has_enough = enough[row] if enough else None
        return has_enough is not None and has_enough(tokenizer.decode(tokens, skip_special_tokens=True))

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
    """Continue a prompt up to a stop string or the end of the document (a BOS or an EOS). Returns the new text."""
    tokens = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    (output,) = generate(
        model, [tokens], max_new_tokens, ends, stop_at(tokenizer, stop), temperature=temperature, seed=seed
    )
    return cut(tokenizer.decode(output, skip_special_tokens=True), stop)
