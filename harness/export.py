"""Models of the attention layout as transformers' LLaMA, the same function in another library's class."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM

from harness.model import LanguageModel


def to_llama(model: LanguageModel, bos_token_id: int, max_length: int) -> LlamaForCausalLM:
    """A LlamaForCausalLM with copies of the weights, in their dtype.

    bos_token_id: what starts a document; it also ends generation. max_length: the context that its config declares.
    Raises ValueError for what LLaMA's class cannot hold: another layout, a window, MLPs of several widths.
    """
    config = model.config
    if config.layout != "attention":
        raise ValueError(f"layout: {config.layout!r} is no LLaMA; only the attention layout can be exported")
    if len(set(config.mlp_widths)) > 1:
        raise ValueError(f"mlp_widths: {config.mlp_widths} differ; LLaMA has one width, export a model with one")
    attention = model.blocks[0].mixer
    if attention.config.window is not None:
        raise ValueError(f"attention.window: {attention.config.window}; LLaMA attends to everything, use no window")
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.mlp_widths[0],
            num_hidden_layers=config.layers,
            num_attention_heads=attention.heads,
            num_key_value_heads=attention.kv_heads,
            head_dim=attention.head_dim,
            max_position_embeddings=max_length,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": attention.config.rope_base},
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=bos_token_id,
        )
    )
    weights = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for i, block in enumerate(model.blocks):
        parts = {
            "input_layernorm": block.mixer_norm,
            "self_attn": block.mixer,
            "post_attention_layernorm": block.mlp_norm,
            "mlp": block.mlp,
        }
        for name, part in parts.items():
            weights |= {f"model.layers.{i}.{name}.{key}": value for key, value in part.state_dict().items()}
    llama.to(model.head.weight.dtype).load_state_dict(weights)
    return llama.eval()
