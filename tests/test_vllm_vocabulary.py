"""A model may have more rows than its tokenizer has pieces: those are never written."""

import pytest
import torch
from vllm_tiny import write_released

from llava.checkpoints.load import load
from llava.describing.decoding import Decoding, decode, draw_per_sample, greedy
from llava.tokens import IMAGE_ID, expand


@pytest.mark.parametrize("drawn", [False, True])
def test_only_pieces_of_the_vocabulary_are_written(tmp_path, drawn):
    loaded = load(write_released(tmp_path / "model"), device="cpu")
    model, rows = loaded.model, loaded.model.lm_head.out_features
    prompts = [expand([1, IMAGE_ID, *words], model.patches) for words in ([5, 6], [7, 8, 9])]
    features = model.image_features(torch.zeros(2, 3, 224, 224))
    choose = draw_per_sample(Decoding(1.0, 50, 8), [1, 2]) if drawn else greedy
    for vocabulary in (10, rows):
        written = decode(
            model,
            prompts,
            features,
            choose=choose,
            max_new_tokens=8,
            eos_id=-1,
            pad_id=0,
            vocabulary=vocabulary,
        )
        ids = [number for text in written for number in text.ids]
        assert len(ids) == 16 and (max(ids) < 10) == (vocabulary == 10)
