"""Models of mixerbench as transformers models.

Load one with `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`. `run.py export` copies
this file next to the weights. The model itself comes from the installed package mixerbench.

dtype=float32, the exported dtype, computes in fp32. bfloat16 and float16 compute as training does under autocast: the
weights of linear layers have that dtype, all others (embedding, norms, convolutions, A_log, dt_bias) stay in fp32.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import local_torch_dtype
from transformers.utils import cached_file
from transformers.utils.generic import can_return_tuple

try:
    from harness import LanguageModel, ModelConfig, ModelState, advance, read
    from mixers.interface import index_state
    from mixers.plugins import files_beside
    from mixers.registry import file_of, load_file
except ImportError as error:
    raise ImportError(
        f"the package mixerbench, which holds the code of this model, cannot be imported ({error}); install it with "
        "`pip install PATH_OF_ITS_CHECKOUT`"
    ) from error

MIXER_FILE = "mixer_file.py"
HALF = (torch.bfloat16, torch.float16)
# transformers 5.24 renamed the cache of outputs and of `generate`.
CACHE = next(f.name for f in fields(CausalLMOutputWithPast) if f.name in ("cache", "past_key_values"))
UNSUPPORTED = {
    **dict.fromkeys(("inputs_embeds", "position_ids"), "a model of mixerbench reads input_ids in their order"),
    **dict.fromkeys(
        ("cu_seq_lens_q", "cu_seq_lens_k"), "packed rows would be read as one text; give one text per row, padded"
    ),
    **dict.fromkeys(("output_attentions", "output_hidden_states"), "a model of mixerbench returns logits only"),
}
"""Arguments of other models that would change the result, and why they are refused. All others are ignored, as by other
models: transformers adds some with each version."""


class MixerbenchConfig(PretrainedConfig):
    """Configuration of an exported model.

    language_model: the fields of `harness.ModelConfig`. run: the run that the model comes from. mixer_file: the file in
    the model's folder that defines its mixer; None for a mixer of mixerbench or of an installed package. helper_files:
    the files that it imports from beside it, relative to the folder.
    """

    model_type = "mixerbench"

    def __init__(
        self,
        language_model: dict[str, Any] | None = None,
        run: dict[str, Any] | None = None,
        mixer_file: str | None = None,
        helper_files: list[str] | None = None,
        **kwargs: Any,
    ):
        self.language_model = language_model or {}
        self.run = run or {}
        self.mixer_file = mixer_file
        self.helper_files = helper_files or []
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding."""
        return self.language_model["vocab_size"]

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.language_model = self.language_model | {"vocab_size": value}

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.language_model["d_model"]

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
        return len(self.language_model["mlp_widths"])

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head uses the weights of the embedding."""
        return self.language_model.get("tie_embeddings", False)


class MixerbenchCache(Cache):
    """The recurrent state of a batch.

    rows: the rows of the batch that have read at least one token, in any order; padding is never read. state: the state
    after the last token of each of `rows`. length: columns seen, padding included. batch: number of rows in the batch.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.reset()

    def reset(self) -> None:
        """Forget everything that was read."""
        self.state: ModelState | None = None
        self.rows: list[int] = []
        self.length = 0
        self.batch: int | None = None

    @property
    def is_linear(self) -> list[bool]:
        """Not in transformers' sense: `generate` may be given the whole text, and leaves out what this has read."""
        return [False]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of columns seen, padding included."""
        return self.length

    def select(self, rows: list[int]) -> ModelState | None:
        """The state of `rows`, of which either all or none have read something; None if none have."""
        indices = [self.rows.index(row) for row in rows if row in self.rows]
        if not indices or rows == self.rows:
            return self.state if indices else None
        return [index_state(s, indices) for s in self.state]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Pick, repeat or reorder the rows of the batch."""
        chosen = indices.tolist()
        begun = [(new, old) for new, old in enumerate(chosen) if old in self.rows]
        self.state = self.select([old for _, old in begun])
        self.rows, self.batch = [new for new, _ in begun], len(chosen)

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch, its copies next to each other."""
        self.batch_select_indices(torch.arange(self.batch or 0).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Raise ValueError unless there is nothing to remove: a recurrent state cannot go back."""
        if tokens_to_remove:
            raise ValueError("crop: a recurrent state cannot forget its last tokens; read the shorter text again")


class MixerbenchForCausalLM(PreTrainedModel, GenerationMixin):
    """`harness.LanguageModel` with the transformers interface, except gradient checkpointing."""

    config_class = MixerbenchConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}
    _is_stateful = True  # rules out generation that has to take tokens back

    def __init__(self, config: MixerbenchConfig):
        super().__init__(config)
        if config.mixer_file and config.name_or_path:
            for helper in config.helper_files:  # a Hub's folder holds what was asked for, and no more
                cached_file(config.name_or_path, helper)
            load_file(cached_file(config.name_or_path, config.mixer_file))
        dtype = torch.get_default_dtype()
        # from_pretrained builds on the meta device, which would lose unsaved buffers and tensors that are neither
        # parameter nor buffer. So the model is built on the CPU, without initialising the values that will be loaded.
        self._loading, self._resizing = torch.empty(0).is_meta, False
        skipped = no_init_weights() if self._loading else contextlib.nullcontext()
        with torch.device("cpu"), local_torch_dtype(torch.float32), skipped:
            self.model = LanguageModel(ModelConfig(**config.language_model))
        self._unsaved = {
            module: {k: b for k, b in module.named_buffers(recurse=False) if k in module._non_persistent_buffers_set}
            for module in self.model.modules()
        }
        # Loading casts each weight to the dtype that it has at this point.
        if dtype in HALF:
            for module in self.model.modules():
                if isinstance(module, nn.Linear) and module.weight is not self.model.embedding.weight:
                    module.weight.data = module.weight.data.to(dtype)
        else:
            self.model.to(dtype)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Restore the unsaved buffers of a module that the checkpoint did not fill completely.

        Initialises nothing else, since LanguageModel does, but the embedding and the head of another vocabulary.
        Raises ValueError if the checkpoint lacks any other tensor.
        """
        if self._resizing:
            nn.init.normal_(module.weight, std=self.model.config.embedding_std)
            return
        if not self._loading:
            return
        unsaved = self._unsaved.get(module, {})
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        missing = [k for k, t in tensors if k not in unsaved and not getattr(t, "_is_hf_initialized", False)]
        if missing:
            raise ValueError(f"{type(module).__name__}.{missing[0]}: not among the weights; export the run again")
        for name, value in unsaved.items():
            module.get_buffer(name).copy_(value)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations and of the weights of linear layers."""
        return next(m.weight.dtype for m in self.model.blocks.modules() if isinstance(m, nn.Linear))

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of tokens."""
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """The head, which maps hidden vectors to logits."""
        return self.model.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.model.head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Change the number of tokens, as in other models. Returns the embedding."""
        self._resizing = True
        try:
            embedding = super().resize_token_embeddings(*args, **kwargs)
        finally:
            self._resizing = False
        self.model.config = self.model.config.model_copy(update={"vocab_size": self.config.vocab_size})
        return embedding

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes a cache of its own class

    def _prepare_attention_mask_for_generation(
        self, inputs_tensor: Tensor, generation_config: Any, *rest: Any
    ) -> Tensor:
        """Read everything if no mask is given: if BOS also pads, transformers would take each BOS for padding."""
        if generation_config.pad_token_id == self.config.bos_token_id:
            return torch.ones_like(inputs_tensor)
        return super()._prepare_attention_mask_for_generation(inputs_tensor, generation_config, *rest)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the model, with the file that defines its mixer, and those that it imports, if there is one."""
        copies: dict[str, Path] = {}
        if self.config.mixer_file:
            first, *others = files_beside(Path(file_of(self.model.config.mixer).path))
            copies = {file.relative_to(first.parent).as_posix(): file for file in others}
            self.config.helper_files = list(copies)
            copies[self.config.mixer_file] = first
        super().save_pretrained(save_directory, *args, **kwargs)
        for name, file in copies.items():
            copy = Path(save_directory) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: MixerbenchCache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: MixerbenchCache | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids [B, T] → logits [B, T, V], or those of the last logits_to_keep positions, or of the positions that
        it lists.

        attention_mask: [B, T], or [B, S + T] including the S columns that the cache has seen. 0 marks padding, which
            may be anywhere: it is skipped, and its logits mean nothing.
        labels: [B, T]; -100 is not scored.
        cache, past_key_values: what an earlier call returned, to resume after it; the newer and the older name.
        use_cache: return a cache that has read input_ids, either the given one or a new one.

        Raises ValueError for any other shape, and for arguments in UNSUPPORTED.
        """
        for name in UNSUPPORTED.keys() & kwargs.keys():
            if kwargs[name] is not None and kwargs[name] is not False:
                raise ValueError(f"{name}: {UNSUPPORTED[name]}; leave it out")
        if cache is not None and past_key_values is not None:
            raise ValueError("cache, past_key_values: two names of one argument, and both are given; leave one out")
        cache = past_key_values if cache is None else cache
        cache = MixerbenchCache() if cache is None else cache
        if not isinstance(cache, MixerbenchCache):
            raise ValueError(f"{CACHE}: {type(cache).__name__} holds no recurrent state; start without one")
        half = self.dtype in HALF
        with torch.autocast(input_ids.device.type, self.dtype) if half else contextlib.nullcontext():
            hidden = self._read(input_ids, attention_mask, cache, bool(use_cache))
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.model.head(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache if use_cache else None})

    def _read(self, tokens: Tensor, mask: Tensor | None, cache: MixerbenchCache, keep: bool) -> Tensor:
        """The input of the head, [B, T, D], zero at padding. keep: update the cache with the tokens."""
        batch, steps = tokens.shape
        if cache.batch not in (None, batch):
            raise ValueError(f"input_ids: {batch} rows, but {CACHE} has {cache.batch}; give it those rows")
        if mask is None:
            mask = torch.ones_like(tokens)
        if mask.shape not in ((batch, steps), (batch, cache.length + steps)):
            raise ValueError(
                f"attention_mask: shape {list(mask.shape)} does not fit {batch} rows of {cache.length} columns seen "
                f"and {steps} new ones; give [{batch}, {cache.length + steps}]"
            )
        present = mask[:, -steps:].bool()
        texts = [row[real].tolist() for row, real in zip(tokens, present, strict=True)]
        reading = [row for row in range(batch) if texts[row]]
        idle = [row for row in cache.rows if not texts[row]]
        begun = set(cache.rows)
        vectors: dict[int, Tensor] = {}
        parts = [(idle, cache.select(idle))] if idle else []
        # Rows that continue, and rows that have seen nothing but padding so far.
        for rows in ([r for r in reading if r in begun], [r for r in reading if r not in begun]):
            if not rows:
                continue
            arguments = self.model, [texts[row] for row in rows], cache.select(rows)
            hidden, after = advance(*arguments) if keep else (read(*arguments), None)
            vectors |= dict(zip(rows, hidden, strict=True))
            parts.append((rows, after))
        if keep:
            if parts:
                cache.rows = [row for rows, _ in parts for row in rows]
                cache.state = parts[0][1] if len(parts) == 1 else self.model.cat_states([s for _, s in parts])
            cache.length, cache.batch = cache.length + steps, batch
        hidden = self.model.embedding.weight.new_zeros(batch, steps, self.config.hidden_size)
        if not vectors:
            return hidden
        if present.all():
            return torch.stack([vectors[row] for row in range(batch)])
        hidden[present] = torch.cat([vectors[row] for row in sorted(vectors)])
        return hidden


MixerbenchConfig.register_for_auto_class()
MixerbenchForCausalLM.register_for_auto_class("AutoModelForCausalLM")
