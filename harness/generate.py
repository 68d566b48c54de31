"""Feeding sequences of different lengths to a model, and decoding from its recurrent state.

Where a state is kept, no sequence is padded: sequences of one length form a batch, others are packed one after the
other (`cu_seqlens`), and a finished row leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.model import LanguageModel, ModelState

BATCH_TOKENS = 16384
BATCH_ROWS = 64
# A padded batch of so many tokens is worth ending when the next row would fill less than this part of its place.
ENOUGH_TOKENS, FILLED = 512, 0.85


def advance(
    model: LanguageModel, rows: Sequence[Sequence[int]], state: ModelState | None = None
) -> tuple[list[Tensor], ModelState]:
    """Feed each row its own tokens, at least one.

    rows: B token lists of any lengths. state: batched over B, None at the start of a text.
    Returns the hidden vectors of each row, [T_i, D], and the state after the last token of each.
    """
    device = model.embedding.weight.device
    lengths = [len(row) for row in rows]
    if len(set(lengths)) == 1:
        tokens = torch.tensor([list(row) for row in rows], device=device)
        hidden, state = model.hidden(tokens, state, None, True)
        return list(hidden), state
    tokens = torch.tensor([token for row in rows for token in row], device=device)
    offsets = torch.tensor([0, *accumulate(lengths)], device=device)
    hidden, state = model.hidden(tokens[None], state, offsets, True)
    return list(hidden[0].split(lengths)), state


def read(model: LanguageModel, rows: Sequence[Sequence[int]], state: ModelState | None = None) -> list[Tensor]:
    """The hidden vectors, [T_i, D], of rows behind which nothing follows; `state` as in `advance`.

    Shorter rows are filled up at their end. What stands there comes after every token that counts, and no state is
    kept that it could reach.
    """
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=model.embedding.weight.device)
    hidden, _ = model.hidden(tokens, state)
    return [h[: len(row)] for h, row in zip(hidden, rows, strict=True)]


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


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_tokens: Collection[int] = (),
    finished: Callable[[int, list[int]], bool] = lambda row, tokens: False,
    temperature: float = 0.0,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    batch_rows: int = BATCH_ROWS,
) -> list[list[int]]:
    """Continue each prompt (a list of at least one token) by at most `max_new_tokens` tokens.

    A row ends before a stop token, and as soon as `finished` says so of its index and new tokens. temperature 0 takes
    the likeliest token; above it, row i samples from its own generator seeded with seed + i, so that what it draws does
    not depend on the rows beside it. Prompts are read at most `batch_tokens` at a time and decoded `batch_rows` at a
    time. Raises ValueError for an empty prompt or a negative temperature.
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
    with torch.no_grad():
        # One batch decodes `batch_rows` rows, whatever its prompts hold in tokens; they are read in smaller ones.
        for rows in batches(lengths, sum(lengths), batch_rows):
            last, states = [], []
            for part in batches([lengths[i] for i in rows], batch_tokens, batch_rows):
                hidden, state = advance(model, [prompts[rows[k]] for k in part])
                last += [h[-1] for h in hidden]
                states.append(state)
            # `batches` sorts by length and `rows` are sorted already, so the parts keep their order.
            state = model.cat_states(states)
            hidden_now = torch.stack(last)
            while True:
                tokens = pick(model.head(hidden_now), temperature, [generators[i] for i in rows])
                alive = []
                for k, (i, token) in enumerate(zip(rows, tokens, strict=True)):
                    if token in stop_tokens:
                        continue
                    outputs[i].append(token)
                    if len(outputs[i]) < max_new_tokens and not finished(i, outputs[i]):
                        alive.append(k)
                if not alive:
                    break
                if len(alive) < len(rows):
                    rows, state = [rows[k] for k in alive], model.index_state(state, alive)
                stepped, state = advance(model, [[outputs[i][-1]] for i in rows], state)
                hidden_now = torch.cat(stepped)
    return outputs


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
