"""The same model for TransformerLens, and the SAE as SAELens loads it."""

from pathlib import Path

import torch
from sae_lens import SAE, HookedSAETransformer
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


def load_model(folder: Path) -> HookedSAETransformer:
    """Return the saved model, its weights unprocessed: nothing folded, nothing centred."""
    saved = GPT2LMHeadModel.from_pretrained(folder).eval()
    width, heads = saved.config.n_embd, saved.config.n_head
    config = HookedTransformerConfig(
        n_layers=saved.config.n_layer,
        d_model=width,
        n_ctx=saved.config.n_positions,
        d_head=width // heads,
        n_heads=heads,
        d_mlp=4 * width,
        d_vocab=saved.config.vocab_size,
        act_fn=saved.config.activation_function,
        eps=saved.config.layer_norm_epsilon,
        normalization_type="LN",
        original_architecture="GPT2LMHeadModel",
        device="cpu",
        default_prepend_bos=False,
    )
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        name_or_path=str(folder),  # TransformerLens reads it again from there
        bos_token=end, eos_token=end, pad_token=end, unk_token=end,
    )  # fmt: skip
    model = HookedSAETransformer(config, tokenizer=tokenizer)
    state = convert_gpt2_weights(saved, config)
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()


def load_sae(folder: Path) -> SAE:
    return SAE.load_from_disk(folder, device="cpu").eval()


def check_residual(
    model: HookedSAETransformer, folder: Path, tokens: torch.Tensor
) -> float:
    """Return the largest relative difference of the hooked residual to transformers' own."""
    from measuring import HOOK_BLOCK, HOOK_NAME  # noqa: PLC0415 - only here

    saved = GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = saved(tokens, output_hidden_states=True).hidden_states[HOOK_BLOCK + 1]
        _, cache = model.run_with_cache(
            tokens, names_filter=[HOOK_NAME], stop_at_layer=HOOK_BLOCK + 1
        )
    return float((cache[HOOK_NAME] - wanted).abs().max() / wanted.abs().max())
