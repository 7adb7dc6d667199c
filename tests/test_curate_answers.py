"""Which answers are descriptions, and the examples that a model is shown."""

import json

import pytest
import yaml
from chat_server import completion

from egogen.curate.answers import flaw, named_by, said
from egogen.curate.prompts import EXAMPLES, question, read_examples
from egogen.errors import EgoGenError

NAMED = {
    "pick up the red mug from the table": {"mug"},
    "take a slice of bread": {"slice", "bread"},
    "cut apple with knife": {"apple"},
    "put down the box": {"box"},
    "turn on the tap": {"tap"},
    "peel potato and carrot": {"potato"},
    "take plate, fork": {"plate"},
    "touch the phone with the left hand": {"phone"},
    "talk to man X": {"man"},
    "stand up": {"stand"},
    "cut tomato again": {"tomato"},
    "lift the plate slightly": {"plate"},
    "push the door open": {"door"},
    "stir well once more": {"stir"},
    "grate parmesan": {"parmesan"},
    "open the jar's lid": {"lid"},
    "stir": {"stir"},
    "pick it up": {"pick"},
    "take bag:garbage": {"bag"},
    "schneide die Möhre": set(),
    "切苹果": set(),
    "7": set(),
    "": set(),
}


@pytest.mark.parametrize("phrase", NAMED)
def test_the_object_of_a_phrase(phrase):
    assert named_by(phrase) == NAMED[phrase]


def test_what_boxes_call_the_object_will_do_too():
    assert named_by("lift the cup", ["coffee mug", "7", "left hand"]) == {"cup", "mug"}


REST = " while the other hand rests on the table."


@pytest.mark.parametrize(
    "wanted, text",
    [
        ("knife", "The right hand lays both knives down"),
        ("knives", "The right hand lays the knife down"),
        ("cloth", "The right hand lifts the dishcloth"),
        ("box", "The right hand opens the LUNCHBOX"),
        ("stir", "The spoon is stirring the soup"),
        ("tortillas", "A tortilla is laid down by the hand"),
        ("hold", "The left hand held the jar firmly"),
    ],
)
def test_a_word_in_another_form(wanted, text):
    assert flaw(text + REST, {wanted}) == ""


@pytest.mark.parametrize(
    "wanted, text", [("plate", "It places the cup"), ("pan", "It moves up and")]
)
def test_another_word(wanted, text):
    assert flaw(text + REST, {wanted}) == f"does not name {wanted}"


def test_any_of_several_words_will_do():
    assert flaw("The hand lifts the mug," + REST, {"cup", "mug"}) == ""
    assert flaw("The hand lifts the pot," + REST, {"cup", "mug"}) == "does not name cup or mug"


@pytest.mark.parametrize(
    "text",
    [
        "I’m sorry, but the mug cannot be seen in this frame of the video.",
        "Sorry, I cannot say how the mug is picked up by the person here.",
        "I can't assist with how the mug is picked up by the person here.",
        "I cannot see any image with a mug that a person could pick up.",
        "I do not see a mug that the person could pick up in this frame.",
        "Unfortunately, no mug can be seen that a person could pick up.",
        "The mug is not there. As an AI, I cannot look at videos of it.",
        "To describe the mug, please provide the frame of the video first.",
        "Sure! The right hand picks up the mug and holds it before the body.",
        "Here's a description: The right hand picks up the mug from the table.",
        "**Description:** The right hand picks up the mug from the table.",
    ],
)
def test_refusals(text):
    assert flaw(text, {"mug"}) == "refuses or chats"
    assert flaw(text) == ""  # of a person's own text nothing is asked but that it can be read


@pytest.mark.parametrize(
    "text", ["The person picks up the mug as if apologising," + REST, "I lift the mug," + REST]
)
def test_no_refusals(text):
    assert flaw(text, {"mug"}) == ""


def test_what_stands_around_a_text_goes():
    assert said(json.dumps(completion("<think>It is\na mug.</think>\n\n“Lift\n it.”"))) == (
        "Lift it.",
        "",
    )
    for mark in ("<think>", "<thinking>"):
        assert flaw(f"{mark}The mug is to be picked up by one hand", {"mug"}) == "holds '<think'"


def test_an_answer_in_parts():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "A mug?"}]}]
    parts += [{"type": "text", "text": part} for part in ("Lift ", "the mug.")]
    assert said(json.dumps(completion(parts))) == ("Lift the mug.", "")


def test_what_is_no_answer_is_quoted():
    with pytest.raises(ValueError, match='found \'{"error": "no credit"}\''):
        said('{"error": "no credit"}')


def test_shipped_examples_are_as_answers_should_be():
    rows = yaml.safe_load(EXAMPLES.read_bytes())["examples"]
    messages = read_examples(EXAMPLES)
    assert len(rows) >= 6 and len(messages) == 1 + 2 * len(rows)
    assert len({row["action"].split()[0] for row in rows}) == len(rows)
    for row, asked, answer in zip(rows, messages[1::2], messages[2::2], strict=True):
        assert asked["content"] == question(row["action"], row.get("objects", {}))
        assert flaw(answer["content"], named_by(row["action"], row.get("objects", {}))) == ""


def test_own_examples(tmp_path):
    path = tmp_path / "own.yaml"
    rows = "[{action: öffne es, description: Es geht auf.}]"
    path.write_bytes(f"\ufeffsystem: Sag es.\nexamples: {rows}\n".encode())
    assert [m["content"] for m in read_examples(path)] == [
        "Sag es.",
        "Action: öffne es",
        "Es geht auf.",
    ]
    with pytest.raises(EgoGenError, match="own.yaml: example 1: expected YAML .*also object"):
        path.write_text("system: a\nexamples: [{action: b, description: c, object: d}]\n")
        read_examples(path)
