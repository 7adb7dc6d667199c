"""What the tiny models of all families share: a tokenizer and the sizes of their parts."""

from __future__ import annotations

WIDTH, HEADS, LAYERS = 32, 2, 2
VOCABULARY = 300  # before the special tokens
SAID = (
    "USER: user assistant ASSISTANT: model system You are a helpful assistant. "
    "How does the person perform the action? What can you see in the picture? "
    "The person holds the knife with the right hand and cuts the onion on the board. "
)


def tokenizer(
    specials: str, *, eos: str, pad: str, bos: str | None = None, extra: dict | None = None, **more
):
    """A byte-level BPE; `bos` is put in front of every text, as Llama and Gemma have it.

    specials: special tokens, a blank between them; they get the ids behind the vocabulary.
    extra: name -> token of the family's own (`tokenizer.image_token` and the like).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([SAID], trainer)
    raw.add_special_tokens(specials.split())
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, raw.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=extra or {},
        model_max_length=4096,
        **more,
    )


def text_config(words, **more) -> dict:
    """What every language model's configuration holds."""
    return {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": WIDTH // HEADS,
        "max_position_embeddings": 4096,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        **more,
    }


def vision_config(size: int, patch: int, **more) -> dict:
    """What every vision tower's configuration holds; `size` and `patch` in pixels."""
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "image_size": size,
        "patch_size": patch,
        **more,
    }


def square(size: int) -> dict:
    return {"height": size, "width": size}
