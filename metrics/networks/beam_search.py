"""BLIP's decoder, whose beam search scores captions as the released script's library did.

Today's transformers divide a caption's log-probability by the number of generated word pieces, the
end included; 4.19 divided by the number of all of them, the prompt included and the end not. The
new rule prefers longer captions, so other captions win.

Shapes: n images, b beams.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

# Of the released script, in word pieces with the prompt.
RULES = {"num_beams": 3, "max_length": 20, "min_length": 5, "do_sample": False}


class TextDecoder(BlipTextLMHeadModel):
    """Transformers' own, and its own search but for the score."""

    @torch.inference_mode()
    def search(
        self, states: Tensor, prompt: list[int], rules: Mapping[str, Any] = RULES
    ) -> list[tuple[float, list[int]]]:
        """(score, pieces with the prompt, without the end) of the best caption of each image.

        `states` (n, tokens, width) is what the decoder attends to. The images of a batch do not
        influence each other.
        """
        pieces = torch.tensor([prompt] * len(states), device=states.device)
        end = self.config.sep_token_id
        # Beams share what is made of their image and the prompt: it is made once.
        read = self(pieces[:, :-1], encoder_hidden_states=states, use_cache=True).past_key_values
        read.batch_repeat_interleave(rules["num_beams"])
        known = {"attention_mask": torch.ones_like(pieces), "encoder_hidden_states": states}
        wanted = {"output_scores": True, "return_dict_in_generate": True}
        ends = {"eos_token_id": end, "pad_token_id": end}
        found = self.generate(pieces, past_key_values=read, **known, **rules, **wanted, **ends)
        rows = [[piece for piece in row if piece != end] for row in found.sequences.tolist()]
        return list(zip(found.sequences_scores.tolist(), rows, strict=True))

    def _update_finished_beams(self, **now: Any) -> tuple[Tensor, ...]:
        """Divides by the old lengths; what is cut at the longest one competes with what ended."""
        sums, length, hits = "topk_log_probs", now["cur_len"], "next_token_hits_stopping_criteria"
        ends = now["topk_running_sequences"][..., length] == self.config.sep_token_id  # (n, 2b)
        self.best = now[sums][:, :1] / length
        now[sums] = now[sums] / torch.where(ends, length, length + 1)
        now[hits] = now[hits] & (now["top_num_beam_mask"] | ~ends)
        now["top_num_beam_mask"] = torch.ones_like(now["top_num_beam_mask"])
        return super()._update_finished_beams(**now | {"length_penalty": 0.0})

    def _check_early_stop_heuristic(self, **now: Any) -> Tensor:
        """Goes on while the best of all, ended or not, would be among those that ended."""
        return super()._check_early_stop_heuristic(
            **now | {"running_beam_scores": self.best, "length_penalty": 0.0}
        )

    def _reorder_cache(self, cache: Any, beams: Tensor) -> Any:
        """Beams change places within their image, whose keys and values are equal."""
        cache.self_attention_cache.reorder_cache(beams)
        return cache
