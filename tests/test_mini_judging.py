"""What the oracle asks of an action beside its picture: hands that stay, things that are gone."""

from dataclasses import replace

import pytest

from mini.oracle.oracle import judge
from mini.oracle.reading import read_image
from mini.oracle.score import score_descriptions
from mini.world.clips import Clip
from mini.world.render import Renderer
from mini.world.scene import after


@pytest.fixture(scope="module")
def done():
    """verb -> (reading of the source, of the target, action) of an action that is done."""
    found: dict = {}
    for index in range(40):
        clip = Clip(11, "ego4d", "train", index, 3, 3)
        actions = list(clip.truth()["actions"].values())
        if all(action["verb"] in found for action in actions):
            continue
        renderer, state = Renderer(clip.scene), clip.scene.state
        before = read_image(renderer.image(state))
        for made, action in zip(clip.scene.actions, actions, strict=True):
            now = read_image(renderer.image(after(state, made)))
            if action["verb"] not in found and judge(before, now, action)[0]:
                found[action["verb"]] = before, now, action
        if {"pick up", "open", "close", "put"} <= found.keys():
            return found
    raise AssertionError(f"not all verbs in 40 clips: {sorted(found)}")


@pytest.mark.parametrize("verb", ["pick up", "open", "put"])
def test_the_other_hand_must_stay(done, verb):
    """A tenth of the picture is allowed; it must be seen, and so must the acting one."""
    before, now, action = done[verb]
    acting, idle = action["hand"], "right" if action["hand"] == "left" else "left"
    stood = before.hands[idle]
    for moved, stays in ((0.0, True), (0.09, True), (0.11, False), (0.2, False), (0.29, False)):
        hands = {**now.hands, idle: replace(stood, y=stood.y - moved)}
        found = judge(before, replace(now, hands=hands), action)
        why = "" if stays else f"the {idle} hand did not stay where it was"
        assert found == (stays, why), moved
    for side in (acting, idle):
        hands = {side: now.hands[side]}
        assert not judge(before, replace(now, hands=hands), action)[0]


@pytest.mark.parametrize("verb", ["pick up", "put"])
def test_a_thing_that_moved_is_no_longer_in_its_place(done, verb):
    before, now, action = done[verb]
    kind = action["object"]
    both = now.masks[kind] | before.masks[kind]
    assert not judge(before, replace(now, masks={**now.masks, kind: both}), action)[0]


@pytest.mark.parametrize("verb, other", [("open", "open"), ("close", "closed")])
def test_a_thing_must_change_its_state(done, verb, other):
    before, now, action = done[verb]
    kind = action["object"]
    things = {**before.objects, kind: replace(before.objects[kind], state=other)}
    changed, why = judge(replace(before, objects=things), now, action)
    assert not changed and why == f"the {kind} is {other}"


def test_targets_are_scored_over_the_actions_that_have_one():
    known = {"verb": "pick up", "object": "mug", "hand": "left", "target": None}
    put = {"verb": "put", "object": "mug", "hand": "right", "target": "bowl"}
    truth = {"c": {"actions": {"0": known, "1": put, "2": put}}}
    lifted = (
        "With the left hand, the person reaches for the mug and lifts it, the right hand rests."
    )
    into = "With the right hand, the person carries the mug to the {} and sets it down inside."
    texts = {"c": {"0": lifted, "1": into.format("bowl"), "2": into.format("pan")}}
    found = score_descriptions(truth, texts)
    assert found == {
        "count": 3,
        "verb": 1.0,
        "object": 1.0,
        "hand": 1.0,
        "target": 0.5,
        "object_hand_target": pytest.approx(2 / 3),
        "all": pytest.approx(2 / 3),
    }
