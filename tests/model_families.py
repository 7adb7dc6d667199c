"""Tiny random image-text models of the real transformers classes, each a complete hub folder.

`write("qwen2_5_vl", folder)` leaves what a download from the hub holds: config.json, weights,
generation_config.json with the values its family publishes, tokenizer, processor and a chat
template of the family's shape. Nothing is fetched.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import chat_templates as chat
import torch
from model_parts import (
    HEADS,
    LAYERS,
    VOCABULARY,
    WIDTH,
    square,
    text_config,
    tokenizer,
    vision_config,
)

QWEN_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
)
QWEN_EXTRA = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}


def qwen_tokens(words) -> dict:
    """The entries of config.json that name tokens of Qwen."""
    number = words.convert_tokens_to_ids
    return {
        "image_token_id": number("<|image_pad|>"),
        "video_token_id": number("<|video_pad|>"),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
    }


def qwen2_5_vl():
    import transformers as t

    words = tokenizer(QWEN_TOKENS, eos="<|im_end|>", pad="<|endoftext|>", extra=QWEN_EXTRA)
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    config = t.Qwen2_5_VLConfig(
        text_config=text_config(words, rope_scaling=rope),
        vision_config={
            "depth": LAYERS,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": HEADS,
            "out_hidden_size": WIDTH,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        **qwen_tokens(words),
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    images = t.Qwen2VLImageProcessor(size=size)
    processor = t.Qwen2_5_VLProcessor(images, words, t.Qwen2VLVideoProcessor(), chat.QWEN2_5)
    published = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-6}
    return config, processor, published, ["<|im_end|>", "<|endoftext|>"]


def qwen3(name: str, template: str, rope: dict, extra: str = "", **text):
    """Qwen3-VL and Qwen3.5: one processor, patches of 16 pixels, features of several layers."""
    import transformers as t

    words = tokenizer(QWEN_TOKENS + extra, eos="<|im_end|>", pad="<|endoftext|>", extra=QWEN_EXTRA)
    vision: dict[str, Any] = {
        "depth": LAYERS,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": HEADS,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 16,
    }
    if name == "Qwen3VL":
        vision["deepstack_visual_indexes"] = [0]
    config = getattr(t, f"{name}Config")(
        text_config=text_config(words, rope_parameters=rope, **text),
        vision_config=vision,
        **qwen_tokens(words),
    )
    half = [0.5, 0.5, 0.5]
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    images = t.Qwen2VLImageProcessor(patch_size=16, size=size, image_mean=half, image_std=half)
    processor = t.Qwen3VLProcessor(images, words, t.Qwen3VLVideoProcessor(), template)
    published = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}
    return config, processor, published, ["<|im_end|>", "<|endoftext|>"]


def qwen3_vl():
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]}
    return qwen3("Qwen3VL", chat.QWEN3, {**rope, "mrope_interleaved": True})


def qwen3_5():
    """Linear attention in the first layer, full attention in the second."""
    rope = {"rope_type": "default", "rope_theta": 1e7, "mrope_section": [4, 2, 2]}
    return qwen3(
        "Qwen3_5",
        chat.QWEN3_5,
        {**rope, "mrope_interleaved": True, "partial_rotary_factor": 0.5},
        extra=" <think> </think>",
        head_dim=32,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
    )


def llava():
    """LLaVA-1.5: CLIP without its last layer, two layers of projector, Llama."""
    import transformers as t

    words = tokenizer(
        "<unk> <s> </s> <pad> <image>",
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        unk_token="<unk>",
        padding_side="left",
        extra={"image_token": "<image>"},
    )
    vision = vision_config(56, 14, model_type="clip_vision_model", projection_dim=WIDTH)
    config = t.LlavaConfig(
        vision_config=vision,
        text_config=text_config(words, model_type="llama", num_key_value_heads=HEADS),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    images = t.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=square(56))
    processor = t.LlavaProcessor(
        images, words, 14, "default", chat.LLAVA, num_additional_image_tokens=1
    )
    return config, processor, {}, ["</s>"]


def llava_onevision():
    import transformers as t

    words = tokenizer(
        "<|endoftext|> <|im_start|> <|im_end|> <image> <video>",
        eos="<|im_end|>",
        pad="<|endoftext|>",
        extra={"image_token": "<image>", "video_token": "<video>"},
    )
    pinpoints = [[56, 56], [56, 112], [112, 56], [112, 112]]
    vision = vision_config(56, 14, model_type="siglip_vision_model", vision_use_head=False)
    config = t.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text_config(words, model_type="qwen2"),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    images = t.LlavaOnevisionImageProcessor(size=square(56), image_grid_pinpoints=pinpoints)
    videos = t.LlavaOnevisionVideoProcessor(size=square(56))
    processor = t.LlavaOnevisionProcessor(images, words, videos, 16, "full", chat.ONEVISION)
    published = {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20}
    return config, processor, {**published, "top_p": 0.8}, ["<|im_end|>", "<|endoftext|>"]


def internvl():
    import transformers as t

    words = tokenizer(
        "<|endoftext|> <|im_start|> <|im_end|> <img> </img> <IMG_CONTEXT> <video>",
        eos="<|im_end|>",
        pad="<|endoftext|>",
        extra={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    config = t.InternVLConfig(
        vision_config=vision_config(56, 14),
        text_config=text_config(words, model_type="qwen2"),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    images = t.GotOcr2ImageProcessor(size=square(56))
    videos = t.InternVLVideoProcessor(size=square(56))
    processor = t.InternVLProcessor(images, words, videos, 4, chat.INTERNVL)
    return config, processor, {}, ["<|im_end|>"]


def idefics(name: str, start: str, words, text: dict):
    """Idefics3 and SmolVLM: a shuffle of pixels, then one linear layer; 4 rows for a view."""
    import transformers as t

    config = getattr(t, f"{name}Config")(
        vision_config=vision_config(64, 16),
        text_config=text_config(words, **text),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=words.pad_token_id,
        scale_factor=2,
    )
    sizes = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}
    images = getattr(t, f"{name}ImageProcessor")(**sizes)
    template = chat.IDEFICS.replace("START", start)
    if name == "SmolVLM":
        videos = t.SmolVLMVideoProcessor(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 64}, num_frames=4, fps=1
        )
        processor = t.SmolVLMProcessor(images, words, videos, 4, template)
    else:
        processor = t.Idefics3Processor(images, words, 4, template)
    return config, processor, {}, ["<end_of_utterance>"]


def places() -> str:
    """Idefics' tokens that tell where in a picture a view lies."""
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    return " ".join(["<fake_token_around_image>", "<image>", "<global-img>", *cells])


def idefics3():
    start = "<|begin_of_text|>"
    tokens = f"{start} <|end_of_text|> <|finetune_right_pad_id|> {places()} <end_of_utterance>"
    words = tokenizer(tokens, bos=start, eos="<end_of_utterance>", pad="<|finetune_right_pad_id|>")
    return idefics("Idefics3", start, words, {"model_type": "llama"})


def smolvlm():
    tokens = f"<|endoftext|> <|im_start|> <|im_end|> {places()} <end_of_utterance>"
    words = tokenizer(
        tokens,
        eos="<end_of_utterance>",
        pad="<|im_end|>",
        extra={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )
    return idefics("SmolVLM", "<|im_start|>", words, {"model_type": "llama"})


def gemma3():
    """A layer of sliding attention over 8 tokens, then one of full attention."""
    import transformers as t

    words = tokenizer(
        "<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn> <start_of_image> <end_of_image> "
        "<image_soft_token>",
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        unk_token="<unk>",
        padding_side="left",
        extra={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    vision = vision_config(56, 14, model_type="siglip_vision_model", vision_use_head=False)
    kinds = ["sliding_attention", "full_attention"]
    text = text_config(words, layer_types=kinds, sliding_window=8, query_pre_attn_scalar=1)
    config = t.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
    )
    images = t.Gemma3ImageProcessor(size=square(56))
    processor = t.Gemma3Processor(images, words, chat.GEMMA3, image_seq_length=4)
    published = {"do_sample": True, "top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid"}
    return config, processor, published, ["<eos>", "<end_of_turn>"]


def gemma4():
    """64 rows for a square frame: its processor takes no fewer than 70."""
    import transformers as t

    words = tokenizer(
        "<pad> <eos> <bos> <unk> <|turn> <turn|> <|image> <image|> <|image|> <|audio> <audio|> "
        "<|audio|> <|video|>",
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        unk_token="<unk>",
        padding_side="left",
        extra={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
    )
    text = text_config(
        words,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
        global_head_dim=WIDTH,
        vocab_size_per_layer_input=len(words),
        hidden_size_per_layer_input=8,
        final_logit_softcapping=30.0,
    )
    vision = {**vision_config(0, 4), "num_key_value_heads": HEADS, "head_dim": WIDTH // HEADS}
    del vision["image_size"]
    number = words.convert_tokens_to_ids
    config = t.Gemma4Config(
        text_config=text,
        vision_config=vision | {"position_embedding_size": 64},
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        image_token_id=words.image_token_id,
        video_token_id=number("<|video|>"),
        audio_token_id=number("<|audio|>"),
        boa_token_id=number("<|audio>"),
        eoa_token_index=number("<audio|>"),
    )
    processor = t.Gemma4Processor(
        t.Gemma4AudioFeatureExtractor(),
        t.Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70),
        words,
        t.Gemma4VideoProcessor(patch_size=4, max_soft_tokens=70),
        chat.GEMMA4,
        image_seq_length=70,
    )
    published = {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}
    return config, processor, published, ["<eos>", "<turn|>"]


BUILDERS = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_5": qwen3_5,
    "llava": llava,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
    "gemma4": gemma4,
}


def here(family: str) -> bool:
    """Whether the installed transformers has the class, and the class what it needs."""
    from transformers import CONFIG_MAPPING

    # SmolVLM's processor imports it to spell out how many frames a film has.
    needed = family != "smolvlm" or importlib.util.find_spec("num2words") is not None
    return family in CONFIG_MAPPING and needed


FAMILIES = [family for family in BUILDERS if here(family)]


def write(family: str, folder: Path, seed: int = 0) -> Path:
    """`folder` with a random model of the family, its processor and its chat template.

    Matrices are drawn wide, so that greedy texts depend on picture and question (words that are
    also the head are drawn narrow, or every word would call for itself again). The model hardly
    ever writes a special token: their rows of the head are small.
    """
    from transformers import AutoModelForImageTextToText, GenerationConfig

    config, processor, published, ends = BUILDERS[family]()
    words = processor.tokenizer
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for values in model.parameters():
            if values.dim() > 1:
                values.normal_(0, 0.3, generator=generator)
        head = model.get_output_embeddings().weight
        if head is model.get_input_embeddings().weight:
            head.mul_(0.1)
            head[VOCABULARY:] *= 0.2  # not 0: they are embeddings too, and a norm divides by them
        else:
            head[VOCABULARY:] = 0
    model.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id,
        eos_token_id=[words.convert_tokens_to_ids(end) for end in ends],
        pad_token_id=words.pad_token_id,
        **published,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
