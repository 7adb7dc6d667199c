"""From a raw action label to the verb phrase that the query asks about.

Ego4D narrates ("#C C picks up the knife"), Epic-Kitchens names ("pick up knife"). Two styles:
"parsed" (default) reads the narration's tags; "released" cuts characters as the released code does.
"""

import re
from functools import lru_cache
from pathlib import Path

from lemminflect import getAllInflections, getLemma

from egogen.errors import EgoGenError, check_choice
from egogen.layout import DATASETS

QUERY = "How does the person properly {} that is displayed in the video frame?"
STYLES = ("parsed", "released")

# WordNet 3.0's detachment rules for verbs: ending -> replacements (its Morphy algorithm).
_DETACHMENT = {"s": [""], "ies": ["y"], "es": ["e", ""], "ed": ["e", ""], "ing": ["e", ""]}
# "#C C", "#c c", "#CC", "# C C": the camera wearer; "#O" and more words: somebody else.
_WEARER = re.compile(r"^\s*#?\s*c\s*c(?![\w-])\s*", re.IGNORECASE)
_WEARER_ONCE = re.compile(r"^\s*(?:#\s*[Cc]|C)(?![\w'-])\s*")
_OTHER = re.compile(
    r"^\s*#\s*[Oo](?![\w-])\s*(?:(?:[Aa]|[Aa]n|[Tt]he)\s+)?"
    r"(?:(?:(?:[a-z]+\s+)?[A-Z]|man|woman|person|people|lady|boy|girl|child|baby)(?![\w'-])\s*)?"
)
_POSSESSIVE = re.compile(r"^'s\s+(?P<part>(?:(?:left|right|other)\s+)?[a-z]+)\s+", re.IGNORECASE)
_REMARK = re.compile(r"\s*#\s*[A-Za-z]+\s*$")  # "#unsure", "#summary"
_WORDNET_VERBS = {"felt", "smoothen", "bread"}  # verbs of WordNet that lemminflect does not list
_FORMS_OF_BE = ("is", "was", "are", "were", "be")


def dataset_of(action_label: str | Path) -> str:
    """Which label convention an action file follows, by its name. Raises EgoGenError if unclear."""
    name = Path(action_label).name.lower()
    found = [dataset for dataset in DATASETS if dataset in name]
    if len(found) != 1:
        expected = f"expected --dataset {' or '.join(DATASETS)}"
        raise EgoGenError(f"{action_label}: the name does not say which dataset it is, {expected}")
    return found[0]


@lru_cache(maxsize=4096)
def verb_lemma(word: str, style: str = "parsed") -> str:
    """Lower-cased base form of a verb: "picks" -> "pick".

    "released" gives what WordNet 3.0's lemmatizer gives (the shortest verb that the endings allow:
    "hoping" -> "hop", "fell" and unknown words unchanged).
    """
    word = word.lower()
    known = getLemma(word, upos="VERB", lemmatize_oov=False)
    if style == "parsed":
        return (known or getLemma(word, upos="VERB") or (word,))[0]
    candidates = [word] if _is_base_verb(word) else []
    candidates += known
    for ending, replacements in _DETACHMENT.items():
        if word.endswith(ending):
            stems = [word.removesuffix(ending) + replacement for replacement in replacements]
            candidates += filter(_is_base_verb, stems)
    return min(candidates, key=len, default=word)


def _is_base_verb(word: str) -> bool:
    return word in _WORDNET_VERBS or word in getAllInflections(word, upos="VERB").get("VB", ())


def clean_label(label: str, dataset: str, style: str = "parsed") -> str:
    """The verb phrase of a label: "#C C picks up the knife" -> "pick up the knife".

    Raises EgoGenError when `dataset` or `style` is unknown.
    """
    check_choice("dataset ", dataset, DATASETS)
    check_choice("label style ", style, STYLES)
    if dataset == "epickitchen":
        return label if style == "released" else label.strip()
    if style == "parsed":
        return _parsed(label)
    verb, space, rest = label[2:].strip()[2:].strip().partition(" ")
    return verb_lemma(verb, "released") + space + rest


def _parsed(label: str) -> str:
    text = _REMARK.sub("", label).strip().rstrip(".").rstrip()
    for subject in (_WEARER, _WEARER_ONCE, _OTHER):
        if subject.match(text):
            text = subject.sub("", text, count=1)
            break
    instrument = ""
    if possessive := _POSSESSIVE.match(text):  # "C's left hand touches" -> "touch ... with the ..."
        instrument = f" with the {possessive['part']}"
        text = text[possessive.end() :]
    words = re.split(r"(\s+)", text.strip(), maxsplit=1)
    if words[0].lower() in _FORMS_OF_BE and len(words) == 3:
        progressive = re.split(r"(\s+)", words[2], maxsplit=1)
        first = progressive[0].lower()
        words = progressive if first.endswith("ing") and verb_lemma(first) != first else words
    rest = " " + words[2] if len(words) == 3 else ""
    return verb_lemma(words[0]) + rest + instrument if words[0] else ""


def check_query(template: str) -> str:
    """The template itself, checked: exactly one `{}` to put the action in."""
    try:
        once = template.format("\0").count("\0") == 1
    except (IndexError, KeyError, ValueError):
        once = False
    if not once:
        raise EgoGenError(f"query {template!r}: expected text with one {{}} for the action")
    return template


def question(action: str, template: str = QUERY) -> str:
    """The question about one action. An image mark inside the action is taken apart."""
    return template.format(action.replace("<image>", "< image >"))
