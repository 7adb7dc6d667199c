"""Labels and prompts of stage 1 against the released ones."""

import json
from pathlib import Path

import pytest

from llava.labels import clean_label, question, verb_lemma

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
