"""The seam between stage 1's loop and whatever describes images.

Loop, feature stores and results know a describer by the protocol `Describer` and nothing of the
model behind it; `llava.describing.llava_describer` is the one for LLaVA checkpoints, and
`llava.describing.hub_describer` that for any other image-text model. Another one is a class with
these members: `tests/test_vllm_describer.py` has a small one, and describes a split with it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from egogen.download.hub import local_path
from egogen.errors import EgoGenError
from llava.checkpoints.fields import is_llava

if TYPE_CHECKING:  # slow to import
    from egogen.features.projector import Projector
    from llava.describing.job import Decoding

Name = tuple[str, str]  # what a sample is known by: (clip, action)


@dataclass(frozen=True)
class Feature:
    """What a describer says of a feature before it makes any: rows (`rows`, `width`) of an image.

    `rows` is None where their number varies. `projector` is for features that a compact store holds
    in a smaller form, `Description.compact`: it makes the projector of that form to the feature.
    """

    width: int
    rows: int | None = None
    projector: Callable[[], "Projector"] | None = None


@dataclass(frozen=True)
class Description:
    """The enriched description of one action, and the features that stage 2 is conditioned on.

    features  {name: (n, width)} for every name in `Describer.features`
    compact   {name: (n, C)} of those with a projector: what goes into it
    ids       the tokens of `text` with the end mark, where the describer knows them
    """

    text: str
    features: Mapping[str, np.ndarray]
    compact: Mapping[str, np.ndarray] = field(default_factory=dict)
    ids: Sequence[int] = ()


class Describer(Protocol):
    """What writes texts and features.

    name        what errors call it, for instance the folder of its weights
    settings    how it writes; others may be set between calls
    provenance  all that its texts and features depend on, question and seed aside: it is recorded
                beside results and stores, which are continued only by an equal one
    features    what it makes, by the names of the stores
    """

    settings: "Decoding | None"

    @property
    def name(self) -> str: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    @property
    def features(self) -> Mapping[str, Feature]: ...

    def too_long(self, question: str, name: Name, text: str | None = None) -> str:
        """Why question and answer of a sample have no room in the model, or "".

        `text` is the answer where it is known. The sample is then named and left out. Called in
        several threads.
        """
        ...

    def describe(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        seeds: Sequence[int],
        names: Sequence[Name],
        texts: Sequence[str] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Description]:
        """Describe a batch. Sample i depends on its image, question and seed, not on the others.

        With `texts`, whatever wrote them, only their features are made, by one teacher-forced pass.
        `on_text` is told the first sample's text so far with each token; what it raises ends it.
        Raises EgoGenError for what the user can put right.
        """
        ...


def load_describer(
    folder: str | os.PathLike,
    settings: "Decoding | None" = None,
    *,
    vision_tower: str | None = None,
    image_size: int | None = None,
    **options: Any,
) -> Describer:
    """The describer of a model's folder or hub name, whichever kind of model it is.

    `settings` say how it writes; None: it only makes the features of given texts. `options` are
    those of `llava.checkpoints.load.load` (dtype, attn, device, device_map, quantization).
    """
    folder = local_path(folder)
    if is_llava(folder):
        from llava.checkpoints.load import load
        from llava.describing.llava_describer import LlavaDescriber

        loaded = load(folder, vision_tower=vision_tower, **options)
        if image_size not in (None, size := loaded.image_processor.size):
            expected = f"expected {size}, the one size of the vision tower of {folder}"
            raise EgoGenError(f"--image-size {image_size}: {expected}")
        return LlavaDescriber(loaded, settings)
    from llava.checkpoints.hub_model import load_hub
    from llava.describing.hub_describer import HubDescriber

    if vision_tower:
        raise EgoGenError(f"--vision-tower {vision_tower}: {folder} has one of its own")
    return HubDescriber(load_hub(folder, image_size=image_size, **options), settings)
