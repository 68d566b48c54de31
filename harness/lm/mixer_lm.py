"""A language model as an lm-eval model: log-likelihoods and generation from recurrent state.

A text is read as in training: [bos] + ids, and the BOS is never scored. Padding never precedes a scored token and never
enters a state that is kept. A prefix that several texts share is read once, and each text continues from its state. A
long document is read in pieces through the state.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from harness.lm.generate import (
    BATCH_ROWS,
    NotFinite,
    advance,
    batches,
    cut,
    generate,
    groups,
    likeliest,
    read,
    stop_at,
    tokens_at_once,
)
from harness.model.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOGITS = 2**26
"""Logits that exist at once: 256 MiB of fp32."""
MAX_NEW_TOKENS = 256
"""New tokens if a task sets no number: lm-eval's own default."""
PIECE = 256
"""Tokens of each document per piece, when as many documents as possible are read together."""
ENOUGH = "enough"
"""Generation option with which a suite tells which strings complete an answer."""
WINDOW = "window"
"""Option of a rolling request: the tokens of its windows, or None to read its document in one go."""
LM_EVAL_LENGTH = 2048
"""lm-eval's own length in tokens for a model that states none."""

Score = tuple[float, bool]
"""Log-likelihood in nats, and whether greedy decoding gives the same tokens."""


class MixerLM(TemplateLM):
    """A LanguageModel and its tokenizer as an lm-eval model. Puts the model into evaluation mode.

    max_length: the longest input in tokens, BOS included; longer contexts lose their beginning. None reads everything.
    rolling_length: tokens of the windows in which documents are scored, as HFLM scores them in windows of its
        max_length; by default max_length. None reads each document in one go.
    batch_tokens, batch_rows: tokens and rows read at once; by default as suits the device. They bound memory and change
        scores by rounding only.
    dtype: dtype of activations, computed by autocast if it differs from the weights'; None keeps the weights' dtype.
    row_tasks: tasks whose rows the model was trained on, such as `mqar` (DataConfig.row_tasks). A suite marks the
        numbers of a model that was trained on its format.

    Raises ValueError if the tokenizer has no BOS, if it has more tokens than the model, or for a limit below 1.
    """

    add_bos_token = True
    stops_when_enough = True  # accepts the option ENOUGH, which lm-eval's own models refuse

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        rolling_length: int | None = None,
        batch_tokens: int | None = None,
        batch_rows: int = BATCH_ROWS,
        dtype: torch.dtype | None = None,
        row_tasks: Iterable[str] = (),
    ):
        super().__init__()
        if tokenizer.bos_token_id is None:
            raise ValueError("tokenizer.bos_token: None; texts start with it, so set one")
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"model.vocab_size: {model.config.vocab_size} is less than the tokenizer's {len(tokenizer)} tokens; "
                "use the tokenizer that the model was trained with"
            )
        limits = {"max_length": max_length, "rolling_length": rolling_length}
        for name, value in (limits | {"batch_tokens": batch_tokens, "batch_rows": batch_rows}).items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} leaves no room for a token; use at least 1")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.rolling_length = rolling_length or max_length
        self.batch_tokens = batch_tokens or tokens_at_once(model)
        self.batch_rows = batch_rows
        self.dtype = dtype or model.embedding.weight.dtype
        self.row_tasks = frozenset(row_tasks)
        self._device = model.embedding.weight.device

    def _precision(self) -> torch.autocast:
        """Autocast to the dtype of activations, where it differs from the weights'."""
        return torch.autocast(self._device.type, self.dtype, enabled=self.dtype != self.model.embedding.weight.dtype)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document: EOS, or the next document's BOS if there is no EOS."""
        eos = self.tokenizer.eos_token_id
        return self.prefix_token_id if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """The BOS, with which every text starts."""
        return self.tokenizer.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name or path."""
        return self.tokenizer.name_or_path

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """[bos] + ids, or ids alone if add_special_tokens is False. A BOS written in the text is not doubled."""
        ids = self.tokenizer.encode(string, add_special_tokens=False)
        if add_special_tokens is False or ids[:1] == [self.prefix_token_id]:
            return ids
        return [self.prefix_token_id, *ids]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Score]:
        """The score of each request's continuation given its context. Raises NotFinite if one is not finite."""
        with self._precision():
            scores = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        require_finite(requests, [value for value, _ in scores])
        return scores

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any) -> list[Score]:
        """Scores of (_, context tokens, continuation tokens). A prefix that texts share is read once."""
        contexts = [self._window(*request) for request in requests]
        targets = [continuation for _, _, continuation in requests]
        # The last token of a text is predicted but never read. The last token of a context predicts, so a shared prefix
        # must not include it.
        texts = [[*context, *target[:-1]] for context, target in zip(contexts, targets, strict=True)]
        limits = [len(context) - 1 for context in contexts]
        answers: list[Score] = [(0.0, True)] * len(requests)
        for group in groups(self.model, texts, limits, self.batch_tokens, self.batch_rows):
            rests = [texts[i][start:] for i, start in zip(group.members, group.starts, strict=True)]
            for part in batches([len(rest) for rest in rests], self.batch_tokens, self.batch_rows, padded=True):
                wanted = [targets[group.members[k]] for k in part]
                tails = [len(target) for target in wanted]
                hidden = read(self.model, [rests[k] for k in part], group.initial_state(self.model, part), tails)
                for k, value in zip(part, self._score(hidden, wanted), strict=True):
                    answers[group.members[k]] = value
        for request, (value, greedy) in zip(requests, answers, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], (value, greedy))
        return answers

    def _window(self, text: Any, context: Sequence[int], continuation: Sequence[int]) -> tuple[int, ...]:
        """Cut a context from the left, so that it and the continuation, less its last token, fit max_length."""
        if not context or not continuation:
            raise ValueError(f"request: {text!r} has no token to {'score' if context else 'condition on'}; drop it")
        if self.max_length is None:
            return tuple(context)
        if len(continuation) > self.max_length:
            raise ValueError(
                f"max_length: {self.max_length} tokens cannot hold a continuation of {len(continuation)}; raise it"
            )
        return tuple(context[-(self.max_length + 1 - len(continuation)) :])

    def _score(self, hidden: Sequence[Tensor], targets: Sequence[Sequence[int]]) -> list[Score]:
        """Scores of token lists, from the hidden vectors [T_i, D] that predict them. Logits are made in slices."""
        lengths = [len(t) for t in targets]
        flat = torch.tensor([token for t in targets for token in t], device=self._device)
        vectors = torch.cat(list(hidden))
        values, hits = [], []
        size = max(1, LOGITS // self.model.config.vocab_size)
        for part, wanted in zip(vectors.split(size), flat.split(size), strict=True):
            logits = self.model.head(part).float()
            values.append(logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0].double())
            hits.append(logits.argmax(-1) == wanted)
        sums = [v.sum().item() for v in torch.cat(values).cpu().split(lengths)]
        exact = [bool(h.all()) for h in torch.cat(hits).cpu().split(lengths)]
        return list(zip(sums, exact, strict=True))

    @torch.no_grad()
    def likeliest(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """The most likely next token after each of P positions in R rows of token ids, which are read as they are.

        inputs: [R, T] int64. positions: [R, P] int64, in [0, T). Returns [R, P] int64 on the CPU. Raises NotFinite with
        the number of a row whose logits are not finite.
        """
        rows = max(1, min(self.batch_rows, self.batch_tokens // inputs.shape[1]))
        size = max(1, LOGITS // self.model.config.vocab_size)
        found, sound = [], []
        with self._precision():
            for part, at in zip(inputs.split(rows), positions.split(rows), strict=True):
                wanted = (at + torch.arange(len(part))[:, None] * part.shape[1]).flatten().to(self._device)
                hidden, _ = self.model.hidden(part.to(self._device), wanted=wanted)
                for vectors in hidden.split(size):
                    tokens, finite = likeliest(self.model.head(vectors))
                    found.append(tokens.cpu())
                    sound.append(finite.cpu())
        wrong = (~torch.cat(sound).view_as(positions).all(1)).nonzero()
        if len(wrong):
            raise NotFinite(int(wrong[0]), "rows")
        return torch.cat(found).view_as(positions)

    @torch.no_grad()
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood in nats of whole documents given BOS: in windows of rolling_length, or in one go.

        A request may have options behind its document; WINDOW replaces rolling_length. Raises NotFinite if one is not
        finite.
        """
        alike: dict[int | None, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            alike[dict(*request.args[1:]).get(WINDOW, self.rolling_length)].append(i)
        totals = [0.0] * len(requests)
        for window, members in alike.items():
            documents = [self.tok_encode(requests[i].args[0], add_special_tokens=False) for i in members]
            with self._precision():
                scores = self._whole(documents) if window is None else self._windows(documents, window)
            for i, score in zip(members, scores, strict=True):
                totals[i] = score
        require_finite(requests, totals)
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, documents: Sequence[list[int]], length: int) -> list[float]:
        """Score documents in lm-eval's windows of `length` tokens.

        Each token is predicted once. The last window extends to the left until it is full.
        """
        owners, windows = [], []
        for i, ids in enumerate(documents):
            for window in get_rolling_token_windows(ids, self.prefix_token_id, length, context_len=1):
                owners.append(i)
                windows.append((None, *make_disjoint_window(window)))
        totals = [0.0] * len(documents)
        for i, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[i] += value
        return totals

    def _whole(self, documents: Sequence[list[int]]) -> list[float]:
        """Score each document from its BOS to its end, in pieces that pass the state on."""
        texts = [[self.prefix_token_id, *ids] for ids in documents]
        totals = [0.0] * len(texts)
        readable = [i for i, text in enumerate(texts) if len(text) > 1]
        most = min(self.batch_rows, max(1, self.batch_tokens // PIECE))
        for batch in batches([len(texts[i]) for i in readable], sum(map(len, texts)), most):
            rows, state, at = [readable[k] for k in batch], None, 0
            while rows:
                step = max(1, self.batch_tokens // len(rows))
                pieces = [texts[i][at : at + step + 1] for i in rows]
                hidden, state = advance(self.model, [p[:-1] for p in pieces], state)
                for i, (value, _) in zip(rows, self._score(hidden, [p[1:] for p in pieces]), strict=True):
                    totals[i] += value
                at += step
                alive = [k for k, i in enumerate(rows) if at + 1 < len(texts[i])]
                rows, state = [rows[k] for k in alive], self.model.index_state(state, alive)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations, each cut before its first stop string.

        generation_kwargs: `until`, `max_gen_toks` (or one of lm-eval's aliases of it), and `enough`, an option of
        MixerLM: lists of strings. Decoding ends once the text holds all strings of one list, ignoring case. Raises
        ValueError for sampling and for any other option, and NotFinite for logits that are not finite.
        """
        alike: dict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            alike[greedy_options(request.args[1])].append(i)
        texts = [""] * len(requests)
        for (until, max_new_tokens), members in alike.items():
            prompts = [self._prompt(requests[i].args[0], max_new_tokens) for i in members]
            wanted = [requests[i].args[1].get(ENOUGH) for i in members]
            enough = [partial(holds_one, lists) if lists else None for lists in wanted]
            try:
                with self._precision():
                    outputs = generate(
                        self.model,
                        prompts,
                        max_new_tokens,
                        stop_tokens={self.prefix_token_id, self.eot_token_id},
                        finished=stop_at(self.tokenizer, until, enough),
                        batch_tokens=self.batch_tokens,
                        batch_rows=self.batch_rows,
                    )
            except NotFinite as fault:
                request = requests[members[fault.index]]
                raise NotFinite(request.doc_id, request.task_name) from None
            for i, tokens in zip(members, outputs, strict=True):
                texts[i] = cut(self.tokenizer.decode(tokens, skip_special_tokens=True), until)
                self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
        return texts

    def _prompt(self, text: str, max_new_tokens: int) -> list[int]:
        """The tokens of a context, cut from the left so that they and the new tokens fit max_length."""
        tokens = self.tok_encode(text)
        if self.max_length is None:
            return tokens
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ValueError(
                f"max_length: {self.max_length} leaves no context next to {max_new_tokens} new tokens; raise it"
            )
        return tokens[-room:]


def require_finite(requests: Sequence[Instance], values: Sequence[float]) -> None:
    """Raise NotFinite with task and document of the first request whose log-likelihood is not finite."""
    for request, value in zip(requests, values, strict=True):
        if not math.isfinite(value):
            raise NotFinite(request.doc_id, request.task_name)


def holds_one(wanted: Sequence[Sequence[str]], text: str) -> bool:
    """Whether a text holds all strings of one of the lists, ignoring case."""
    return any(all(string.lower() in text.lower() for string in strings) for strings in wanted)


def greedy_options(generation_kwargs: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """(stop strings, maximum of new tokens) of a request. Raises ValueError for options that greedy decoding lacks."""
    options = dict(normalize_gen_kwargs(generation_kwargs, MAX_NEW_TOKENS))
    until, max_new_tokens = options.pop("until"), options.pop("max_gen_toks")
    options.pop(ENOUGH, None)
    unsupported = {key: value for key, value in options.items() if key not in ("do_sample", "temperature") or value}
    if unsupported:
        raise ValueError(
            f"generation_kwargs: {unsupported} is not supported, decoding is greedy; leave it out of the task"
        )
    return tuple(stop for stop in until if stop), max_new_tokens
