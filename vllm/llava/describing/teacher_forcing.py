"""Text features of texts that are already there, by one pass over prompt and text.

The row that predicts token w of an answer sits on the token before it. With causal attention it is
the same whether the tokens come one by one or all at once, so features can be made for any text,
whatever wrote it.

Letters: B samples, T positions of the longest prompt and answer (an image has P of them), P patches
of an image, D language width, n ids of an answer.
"""

from collections.abc import Sequence

import torch

from llava.model import Llava, runs_on
from llava.tokens import padded


@torch.inference_mode()
def text_rows(
    model: Llava,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    features_BPD: torch.Tensor,
    pad_id: int,
) -> list[torch.Tensor]:
    """Rows (n, D), on the CPU in the model's precision, of each answer of n ids to its prompt.

    `prompts` are ids with the image expanded, `features_BPD` the images; an answer's last id is the
    end mark where it has one. Sequences are padded on the right, where causal attention never
    looks, so that no mask is needed.
    """
    device = runs_on(model.get_input_embeddings())
    inputs = [
        [*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)
    ]  # nothing follows the last token, so its own state is not needed
    ids = padded(inputs, pad_id)  # (B, T)
    hidden = model.model.language_model(
        inputs_embeds=model.embed(ids.to(device), features_BPD.to(device)), use_cache=False
    ).last_hidden_state  # (B, T, D), after the final norm
    return [
        hidden[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)].cpu()  # (n, D)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
