"""Labels and prompts of stage 1 against the released ones."""

import json
from pathlib import Path

import pytest

from egogen.labels import clean_label, question, verb_lemma

DATA = Path(__file__).parent / "data" / "vllm"
PROMPTS = json.loads((DATA / "prompts.json").read_text())
FORMS = json.loads((DATA / "lemmatizer.json").read_text())["forms"]


def test_released_lemmas():
    wrong = {form for form, lemma in FORMS.items() if verb_lemma(form, "released") != lemma}
    assert not wrong


@pytest.mark.parametrize("dataset", ["ego4d", "epickitchen"])
def test_released_cleaning_and_question(dataset):
    cases = PROMPTS[dataset]
    assert cases
    for case in cases:
        cleaned = clean_label(case["label"], dataset, "released")
        assert cleaned == case["cleaned_action"], case["label"]
    case = cases[0]
    assert question(case["cleaned_action"], PROMPTS["query_template"]) in case["prompt"]


PARSED = {  # the default rule, Ego4D's narrations
    "#C C picks up the knife": "pick up the knife",
    "#c c picks up the knife": "pick up the knife",
    "#CC picks up the knife": "pick up the knife",
    "# C C picks up the knife": "pick up the knife",
    "C picks up the knife": "pick up the knife",
    "#C picks up the knife": "pick up the knife",
    "#C C picks up the knife.": "pick up the knife",
    "#C C picks up the knife #unsure": "pick up the knife",
    "  #C C  picks up  the knife ": "pick up  the knife",
    "#C C is cutting the dough": "cut the dough",
    "#C C was lifting the lid": "lift the lid",
    "#C C is in the kitchen": "be in the kitchen",
    "#C C's left hand touches the pot": "touch the pot with the left hand",
    "#C C's hand touches the pot": "touch the pot with the hand",
    "#O A man X moves the chair": "move the chair",
    "#O the woman Y opens a door": "open a door",
    "#O lady A washes hands": "wash hands",
    "#C C cuts #O": "cut",
    "#C C looks around": "look around",
    "#C C walks": "walk",
    "#C C felt the cloth": "feel the cloth",
    "#C C hopes": "hope",
    "#C C Carries a box": "carry a box",
    "#C C": "",
    "": "",
}


@pytest.mark.parametrize("label", PARSED)
def test_parsed_labels(label):
    """The default style; `style="released"` cuts characters instead."""
    assert clean_label(label, "ego4d") == PARSED[label]


@pytest.mark.parametrize(
    "label, phrase",
    [("pick up knife", "pick up knife"), ("  open door ", "open door"), ("#C C x", "#C C x")],
)
def test_names_of_epic_kitchens_stay(label, phrase):
    assert clean_label(label, "epickitchen") == phrase


def test_the_default_style_and_question():
    assert clean_label("#C C picks", "ego4d") == clean_label("#C C picks", "ego4d", "parsed")
    assert question("pick up the knife") == (
        "How does the person properly pick up the knife that is displayed in the video frame?"
    )
    assert question("cut <image>", "{}") == "cut < image >"
