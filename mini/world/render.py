"""State -> image. Layers of things that do not change are drawn once a clip and kept."""

import colorsys
import math

import numpy as np
from PIL import Image

from mini.world import backdrop, hands, objects
from mini.world.kinds import HOLD, KINDS, REST, SIDES
from mini.world.paint import Layer, Pen
from mini.world.scene import Scene, State, Thing

POUR_TURN = 1.85  # radians from upright to pouring
KNIFE_TURN = 0.75


class Renderer:
    """Images of one clip: `Renderer(scene).image(state)`."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.width, self.height = scene.size
        rng = np.random.default_rng(scene.look_seed)
        self.empty = backdrop.backdrop(rng, scene.size, scene.table)
        self.light = backdrop.light(rng, scene.size, scene.lit, scene.gain)
        self.skin = np.array(scene.skin, np.float32)
        self.sleeve = np.array(scene.sleeve, np.float32)
        self.kept: dict[tuple, Pen] = {}

    def image(self, state: State) -> Image.Image:
        """RGB image of the state, at the scene's size."""
        canvas = self.empty.copy()
        standing = [thing for thing in state.things.values() if thing.place]
        for thing in sorted(standing, key=lambda thing: thing.y):
            self._standing(canvas, thing, state)
        for side in SIDES:
            self._hand(canvas, side, state)
        canvas *= self.light
        np.clip(canvas, 0.0, 1.0, out=canvas)
        return Image.fromarray((canvas * 255.0 + 0.5).astype(np.uint8))

    def colour(self, kind: str) -> np.ndarray:
        """A kind's colour under the scene's hue shift (degrees), saturation and value factors."""
        (hue, saturation, value), tone = KINDS[kind].hsv, self.scene.tones[kind]
        turn = (hue + tone[0]) / 360 % 1.0
        rgb = colorsys.hsv_to_rgb(turn, min(saturation * tone[1], 1.0), min(value * tone[2], 1.0))
        return np.array(rgb, np.float32)

    def base(self, thing: Thing) -> tuple[float, float]:
        return thing.x * self.width, thing.y * self.height

    # things ------------------------------------------------------------------------------------

    def _standing(self, canvas: np.ndarray, thing: Thing, state: State) -> None:
        inside = [item for item in state.things.values() if item.inside == thing.kind]
        self._part(thing, "back").layer.onto(canvas)
        for item in inside:
            self._put_inside(canvas, item, thing)
        if thing.kind in objects.FRONT:
            self._part(thing, "front").layer.onto(canvas)

    def _part(self, thing: Thing, part: str) -> Pen:
        key = (thing.kind, thing.condition, part)
        if key not in self.kept:
            pen = self.kept[key] = self._pen(*self.base(thing), self.scene.unit * thing.scale)
            if part == "back":
                objects.shadow(pen, KINDS[thing.kind].size[0])
            drawing = (objects.BACK if part == "back" else objects.FRONT)[thing.kind]
            objects.draw(pen, drawing, self.colour(thing.kind), thing.condition)
        return self.kept[key]

    def _pen(self, x: float, y: float, unit: float, angle=0.0, flip=1, reach=1.5) -> Pen:
        """A pen at (x, y) px on a layer of its own, `reach` units each way."""
        far = reach * unit
        layer = Layer(x - far, y - far, x + far, y + far, self.scene.size)
        return Pen(layer, x, y, unit, angle, flip, self.scene.lit)

    def _put_inside(self, canvas: np.ndarray, item: Thing, container: Thing) -> None:
        x, y = self.base(container)
        unit = self.scene.unit * container.scale
        floor = KINDS[container.kind].floor
        turn = -0.5 if item.kind == "carrot" and container.kind == "bowl" else 0.0
        lift = 0.12 if turn else 0.0
        x, y = x + floor[0] * unit, y + (floor[1] - lift) * unit
        self._draw(canvas, item, x, y, unit * item.scale / container.scale, turn=turn)

    def _draw(self, canvas, thing: Thing, x, y, unit, turn=0.0, flip=1) -> None:
        """Draw a thing with its base point at (x, y) px, over everything so far."""
        pen = self._pen(x, y, unit, turn, flip, reach=1.6)
        for part in (objects.BACK, objects.FRONT):
            if thing.kind in part:
                objects.draw(pen, part[thing.kind], self.colour(thing.kind), thing.condition)
        pen.layer.onto(canvas)

    # hands -------------------------------------------------------------------------------------

    def _sway(self, side: str, spot: tuple[float, float]) -> tuple[float, float]:
        dx, dy = self.scene.sway[side]
        return (spot[0] + dx) * self.width, (spot[1] + dy) * self.height

    def _hand(self, canvas: np.ndarray, side: str, state: State) -> None:
        hand = state.hands[side]
        outer = -1 if side == "left" else 1
        if hand.mode == "rest":
            self._arm(canvas, side, *self._sway(side, REST[side]), curl=0.35)
            return
        if hand.mode in ("touch", "release"):
            x, y = self.base(state.things[hand.target])
            unit = self.scene.unit
            if "near" in state.things[hand.target].place:  # no room below: from the side
                x, y = x + 0.95 * outer * unit, y + 0.2 * unit
            else:
                x, y = x + 0.12 * outer * unit, y + 0.66 * unit
            self._arm(canvas, side, x, y, curl=0.15)
            return
        held = next(thing for thing in state.things.values() if thing.held == side)
        pose = self._held_pose(side, hand.mode, held, state)
        pen = self._pen(*pose)
        grasp = pen.at(*KINDS[held.kind].grasp)
        ex, ey = hands.elbow(self.scene.size, side, grasp[0])
        away = math.hypot(grasp[0] - ex, grasp[1] - ey)
        back = 0.26 * self.scene.unit / away  # the palm lies a little nearer than the grasp
        palm = (grasp[0] + (ex - grasp[0]) * back, grasp[1] + (ey - grasp[1]) * back)
        arm = self._arm(canvas, side, *palm, curl=1.0)
        if hand.mode == "wash":
            self._suds(canvas, state.things[hand.target], -outer)
        self._draw(canvas, held, *pose)
        grip = self._pen(*palm, self.scene.unit, arm.angle, arm.flip, reach=0.8)
        objects.draw(grip, objects.GRIP, self.skin, "")
        grip.layer.onto(canvas)
        if hand.mode == "pour":
            self._stream(canvas, state.things[hand.target], *pen.at(0.0, -1.3))

    def _held_pose(self, side: str, mode: str, held: Thing, state: State):
        """Base point (x, y) px, pixels a unit, turn and flip of a held thing."""
        outer = -1 if side == "left" else 1
        unit = self.scene.unit * held.scale
        turn = outer * KNIFE_TURN if held.kind == "knife" else 0.0
        if mode == "hold":
            spot = self._sway(side, HOLD[side])
            anchor = KINDS[held.kind].grasp
        else:
            target = state.things[state.hands[side].target]
            x, y = self.base(target)
            size = self.scene.unit * target.scale
            if mode == "pour":
                turn = -outer * POUR_TURN
                spot = (x + outer * 0.1 * size, y - (KINDS[target.kind].size[1] + 0.3) * size)
                anchor = (0.0, -1.3)
            elif mode == "cut":
                spot, anchor, turn = (x, y - 0.8 * size), (-0.5, -0.12), outer * 0.3
            else:
                height = KINDS[target.kind].size[1]
                spot, anchor = (x + outer * 0.42 * size, y - 0.36 * height * size), (0.0, -0.2)
        flip = outer if held.kind == "knife" else -outer
        shift = self._pen(0, 0, unit, turn, flip).at(*anchor)
        return spot[0] - shift[0], spot[1] - shift[1], unit, turn, flip

    def _arm(self, canvas, side: str, x: float, y: float, curl: float) -> Pen:
        """Draw arm, hand and shadow, palm at (x, y) px; the pen that drew them."""
        key, unit = ("arm", side, x, y, curl), self.scene.unit
        if key not in self.kept:
            pen, length = hands.arm_pen(self.scene.size, side, x, y, unit, self.scene.lit)
            shift = Pen(pen.layer, x - 0.2 * self.scene.lit * unit, y + 0.1 * unit, unit, pen.angle)
            shift.capsule(
                (0, length), (0, -0.25), 0.5, 0.36, objects.DARK, alpha=0.3, soft=0.35 * unit
            )
            hands.draw_arm(pen, length, self.skin, self.sleeve)
            hands.draw_hand(pen, self.skin, curl)
            self.kept[key] = pen
        self.kept[key].layer.onto(canvas)
        return self.kept[key]

    def _suds(self, canvas, target: Thing, flip: int) -> None:
        pen = self._pen(*self.base(target), self.scene.unit * target.scale, flip=flip)
        objects.suds(pen, *KINDS[target.kind].size)
        pen.layer.onto(canvas)

    def _stream(self, canvas, target: Thing, x: float, y: float) -> None:
        """Milk into the target, from (x, y) px."""
        tx, ty = self.base(target)
        size = self.scene.unit * target.scale
        pen = self._pen(tx, ty, size, reach=2.0)
        start = ((x - tx) / size, (y - ty) / size)
        objects.stream(pen, start, (start[0], -KINDS[target.kind].size[1] * 0.78))
        pen.layer.onto(canvas)
