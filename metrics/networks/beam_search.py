"""Beam search that scores captions as the released script's library (transformers 4.19) did.

Today's libraries divide a caption's log-probability by the number of generated word pieces, the
end included; the old one by the number of all of them, the prompt included and the end not. The new
rule prefers longer captions, so other captions win.

Shapes: n images, w captions of each that go on (one reads the prompt, then b beams), l pieces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache


@dataclass(frozen=True)
class SearchRules:
    """Lengths are in word pieces, the prompt included."""

    beams: int = 3
    longest: int = 20
    shortest: int = 5
    end: int = 102
    count_prompt: bool = True  # False: today's rule of the score

    def length(self, pieces: int, prompt: int, ended: bool) -> int:
        """What the log-probability of a caption of `pieces` without its end is divided by."""
        return pieces if self.count_prompt else pieces - prompt + ended


@torch.inference_mode()
def beam_search(
    network: Callable, states: Tensor, prompt: list[int], rules: SearchRules
) -> list[tuple[float, list[int]]]:
    """(score, pieces with the prompt, without the end) of the best caption of each image.

    `network` is BLIP's decoder, `states` (n, tokens, width) what it attends to. The images of a
    batch do not influence each other.
    """
    # Keys and values of the image and of the pieces so far.
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    count, beams, length = len(states), rules.beams, len(prompt)
    # Behind what is written there is the end; it is never written itself.
    pieces = torch.full((count, 1, rules.longest), rules.end, device=states.device)  # (n, w, l)
    pieces[..., :length] = torch.tensor(prompt)
    newest = pieces[:, 0, :length]  # (n w, new ones)
    totals = torch.zeros(count, 1, device=states.device)  # (n, w) log-probabilities
    scores, ended = totals[:, :0], pieces[:, :0]  # at most b that ended, best first
    done = torch.zeros_like(totals, dtype=torch.bool)  # (n, 1): none that goes on will be better
    while True:
        read = {"encoder_hidden_states": states, "past_key_values": cache, "use_cache": True}
        following = network(newest, **read).logits[:, -1].log_softmax(dim=-1)  # (n w, vocabulary)
        if length < rules.shortest:
            following[:, rules.end] = -torch.inf
        sums = (totals[..., None] + following.view(*totals.shape, -1)).flatten(1)
        best, places = sums.topk(2 * beams)  # (n, 2b), best first: b of them go on at least
        beam, piece = places // following.shape[1], places % following.shape[1]
        ends, divisor = piece == rules.end, rules.length(length, len(prompt), True)
        values = (best / divisor).masked_fill(~ends | done, -torch.inf)[:, :beams]
        scores, ended = _best(beams, (scores, values), (ended, _chosen(pieces, beam[:, :beams])))
        done |= scores[:, -1:] >= best[:, :1] / divisor
        going = ends.int().argsort(dim=1, stable=True)[:, :beams]
        totals, beam, piece = (x.gather(1, going) for x in (best, beam, piece))
        width, pieces = pieces.shape[1], _chosen(pieces, beam)
        pieces[..., length], newest, length = piece, piece.view(-1, 1), length + 1
        if length >= rules.longest or done.all():
            break
        if width == 1:
            cache.batch_repeat_interleave(beams)
            states = states.repeat_interleave(beams, dim=0)
        else:  # beams change places within their image, whose keys and values are equal
            first = width * torch.arange(count, device=beam.device)[:, None]
            cache.self_attention_cache.reorder_cache((first + beam).flatten())
    # What was cut at the longest length competes with what ended by itself.
    values = totals / rules.length(length, len(prompt), False)
    scores, ended = _best(1, (scores, values.masked_fill(done, -torch.inf)), (ended, pieces))
    rows = ([piece for piece in row if piece != rules.end] for row in ended[:, 0].tolist())
    return list(zip(scores[:, 0].tolist(), rows, strict=True))


def _chosen(pieces: Tensor, numbers: Tensor) -> Tensor:
    """Captions (n, w, l) by their numbers (n, k) -> (n, k, l)."""
    return pieces.take_along_dim(numbers[..., None], dim=1)


def _best(count: int, scores: Sequence[Tensor], pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The `count` best of captions in two parts, best first, of equals those of the first part."""
    values, order = torch.cat([*scores], dim=1).sort(dim=1, descending=True, stable=True)
    return values[:, :count], _chosen(torch.cat([*pieces], dim=1), order[:, :count])
