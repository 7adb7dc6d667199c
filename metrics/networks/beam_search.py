"""Beam search that scores captions as the released script's library (transformers 4.19) did.

Today's libraries divide a caption's log-probability by the number of generated word pieces, the
end included; the old one by the number of all of them, the prompt included and the end not. The new
rule prefers longer captions, so other captions win.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

Candidate = tuple[float, int, int]  # log-probability so far, beam, next piece


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


@dataclass
class _Search:
    """What is known about one image: its finished captions, at most as many as beams."""

    rules: SearchRules
    prompt: int
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False

    def add(self, total: float, pieces: list[int], ended: bool) -> None:
        score = total / self.rules.length(len(pieces), self.prompt, ended)
        self.finished.append((score, pieces))
        self.finished.sort(key=lambda caption: caption[0], reverse=True)
        del self.finished[self.rules.beams :]

    def advance(self, candidates: list[Candidate], beams: list[list[int]]) -> list[Candidate]:
        """Take over what ends, and give the (total, beam, piece) that go on.

        `candidates`: (total, beam, piece) with the best total first, twice as many as beams.
        """
        goes_on: list[Candidate] = []
        for rank, (total, beam, piece) in enumerate(candidates):
            if piece != self.rules.end:
                goes_on.append((total, beam, piece))
            elif rank < self.rules.beams:
                self.add(total, beams[beam], True)
            if len(goes_on) == self.rules.beams:
                break
        if len(self.finished) == self.rules.beams:
            hope = candidates[0][0] / self.rules.length(len(beams[0]), self.prompt, True)
            self.done = self.finished[-1][0] >= hope
        return goes_on

    def best(self, totals: list[float], beams: list[list[int]]) -> tuple[float, list[int]]:
        """The caption; what was cut at the longest length competes with what ended by itself."""
        if not self.done:
            for total, pieces in zip(totals, beams, strict=True):
                self.add(total, pieces, False)
        return self.finished[0]


@torch.inference_mode()
def beam_search(
    network: Callable, states: torch.Tensor, prompt: list[int], rules: SearchRules
) -> list[tuple[float, list[int]]]:
    """(score, pieces with the prompt, without the end) of the best caption of each image.

    `network` is BLIP's decoder, `states` (n, tokens, width) what it attends to. The images of a
    batch do not influence each other.
    """
    # Keys and values of the image and of the pieces so far.
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    count, device, beams = len(states), states.device, rules.beams
    width = 1  # one row an image reads the prompt, then `beams` rows go on
    newest = pieces = torch.tensor([prompt] * count, device=device)
    totals = torch.zeros(count, 1, device=device)
    searches = [_Search(rules, len(prompt)) for _ in range(count)]
    while True:
        logits = network(
            newest, encoder_hidden_states=states, past_key_values=cache, use_cache=True
        ).logits
        log_probabilities = logits[:, -1].log_softmax(dim=-1)
        if pieces.shape[1] < rules.shortest:
            log_probabilities[:, rules.end] = -torch.inf
        candidates = _candidates(log_probabilities, totals, 2 * beams)
        rows = pieces.view(count, width, -1).tolist()
        chosen = [
            [(0.0, 0, rules.end)] * beams if search.done else search.advance(best, texts)
            for search, best, texts in zip(searches, candidates, rows, strict=True)
        ]
        totals = torch.tensor([[total for total, _, _ in row] for row in chosen], device=device)
        places = [number * width + beam for number, row in enumerate(chosen) for _, beam, _ in row]
        order = torch.tensor(places, device=device)
        newest = torch.tensor([[piece] for row in chosen for _, _, piece in row], device=device)
        pieces = torch.cat([pieces[order], newest], dim=1)
        if pieces.shape[1] >= rules.longest or all(search.done for search in searches):
            break
        if width == 1:
            cache.batch_repeat_interleave(beams)
            states, width = states.repeat_interleave(beams, dim=0), beams
        else:  # beams change places within their image, whose keys and values are equal
            cache.self_attention_cache.reorder_cache(order)
    rows = pieces.view(count, beams, -1).tolist()
    return [
        search.best(row, texts)
        for search, row, texts in zip(searches, totals.tolist(), rows, strict=True)
    ]


def _candidates(
    log_probabilities: torch.Tensor, totals: torch.Tensor, count: int
) -> list[list[Candidate]]:
    """Of each image the `count` best (total, beam, piece), best first.

    `log_probabilities` (n * beams, vocabulary), `totals` (n, beams) of the beams so far.
    """
    vocabulary = log_probabilities.shape[1]
    sums = totals[:, :, None] + log_probabilities.view(*totals.shape, vocabulary)
    best = sums.flatten(1).topk(count)
    return [
        [(total, *divmod(place, vocabulary)) for total, place in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
