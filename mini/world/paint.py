"""Antialiased shaded shapes on small premultiplied layers (numpy, float32, colours in [0, 1])."""

import math
from collections.abc import Callable, Sequence

import numpy as np

Shade = Callable[[np.ndarray, np.ndarray], np.ndarray]  # local coordinates (h, w) -> factor (h, w)


class Layer:
    """A transparent rectangle [x0, x1) x [y0, y1) of the frame: rgb (h, w, 3), alpha (h, w, 1)."""

    def __init__(self, x0: float, y0: float, x1: float, y1: float, size: tuple[int, int]):
        self.x0, self.y0 = max(int(x0), 0), max(int(y0), 0)
        self.x1 = max(min(math.ceil(x1), size[0]), self.x0 + 1)
        self.y1 = max(min(math.ceil(y1), size[1]), self.y0 + 1)
        shape = (self.y1 - self.y0, self.x1 - self.x0)
        self.rgb = np.zeros((*shape, 3), np.float32)
        self.alpha = np.zeros((*shape, 1), np.float32)

    def window(self, x: float, y: float, reach: float):
        """The part within `reach` of (x, y): slices, and pixel centres relative to (x, y).

        Empty where that is beyond the layer.
        """
        left = max(math.floor(x - reach), self.x0)
        right = max(min(math.ceil(x + reach) + 1, self.x1), left)
        top = max(math.floor(y - reach), self.y0)
        bottom = max(min(math.ceil(y + reach) + 1, self.y1), top)
        across = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - x)
        down = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - y)
        part = slice(top - self.y0, bottom - self.y0), slice(left - self.x0, right - self.x0)
        return part, across, down

    def blend(self, part, mask: np.ndarray, colour: np.ndarray) -> None:
        """Lay `colour` (3,) or (h, w, 3) over the part with coverage `mask` (h, w) in [0, 1]."""
        mask = mask[..., None]
        self.rgb[part] += mask * (colour - self.rgb[part])
        self.alpha[part] += mask * (1.0 - self.alpha[part])

    def onto(self, canvas: np.ndarray) -> None:
        """Composite over `canvas` (H, W, 3), in place."""
        view = canvas[self.y0 : self.y1, self.x0 : self.x1]
        view *= 1.0 - self.alpha
        view += self.rgb


class Pen:
    """Draws on a layer in the object's own units: origin (ox, oy) px, `unit` px a unit, turned by
    `angle` radians (clockwise on screen), mirrored left-right when `flip` is -1."""

    def __init__(self, layer: Layer, ox: float, oy: float, unit: float, angle=0.0, flip=1, lit=0.0):
        self.layer, self.unit, self.angle, self.flip, self.lit = layer, unit, angle, flip, lit
        self.origin = (ox, oy)
        self.cos, self.sin = math.cos(angle), math.sin(angle)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Object units -> pixels."""
        x = x * self.flip
        return (
            self.origin[0] + self.unit * (x * self.cos - y * self.sin),
            self.origin[1] + self.unit * (x * self.sin + y * self.cos),
        )

    def _local(self, x, y, reach, turn):
        """Window around (x, y): slices, and px coordinates (p, q) along the shape's own axes."""
        part, across, down = self.layer.window(*self.at(x, y), reach * self.unit + 2.0)
        angle = self.angle + self.flip * turn
        cos, sin = math.cos(angle), math.sin(angle)
        return part, (across * cos + down * sin) * self.flip, down * cos - across * sin

    def _fill(self, part, mask, colour, shade, p, q, alpha):
        colour = np.asarray(colour, np.float32)
        if shade is not None:
            colour = np.clip(colour * shade(p, q)[..., None], 0.0, 1.0)
        self.layer.blend(part, np.clip(mask, 0.0, 1.0) * np.float32(alpha), colour)

    def ellipse(self, x, y, a, b, colour, shade: Shade | None = None, turn=0.0, alpha=1.0, half=0):
        """Half axes a, b. `half` +1 keeps the lower half, -1 the upper. Shades get [-1, 1]."""
        part, p, q = self._local(x, y, max(a, b), turn)
        p, q = p / (a * self.unit), q / (b * self.unit)
        radius = np.sqrt(p * p + q * q)
        slope = np.sqrt((p / a) ** 2 + (q / b) ** 2) / (self.unit * np.maximum(radius, 1e-3))
        mask = np.clip(0.5 - (radius - 1.0) / np.maximum(slope, 1e-3), 0.0, 1.0)
        if half:
            mask = mask * np.clip(0.5 + half * q * b * self.unit, 0.0, 1.0)
        self._fill(part, mask, colour, shade, p, q, alpha)

    def glow(self, x, y, a, b, colour, alpha=1.0, turn=0.0, power=1.5):
        """A soft ellipse that fades to nothing at its rim: shadows, highlights, steam."""
        part, p, q = self._local(x, y, max(a, b), turn)
        distance = (p / (a * self.unit)) ** 2 + (q / (b * self.unit)) ** 2
        mask = np.clip(1.0 - distance, 0.0, 1.0) ** power
        self._fill(part, mask, colour, None, p, q, alpha)

    def box(
        self, x, y, a, b, colour, shade: Shade | None = None, round_by=0.05, turn=0.0, alpha=1.0
    ):
        """Rectangle of half sides a, b with corners rounded by `round_by`."""
        part, p, q = self._local(x, y, math.hypot(a, b), turn)
        corner = min(round_by, a, b) * self.unit
        dx = np.abs(p) - (a * self.unit - corner)
        dy = np.abs(q) - (b * self.unit - corner)
        outside = np.sqrt(np.maximum(dx, 0.0) ** 2 + np.maximum(dy, 0.0) ** 2)
        distance = outside + np.minimum(np.maximum(dx, dy), 0.0) - corner
        p, q = p / (a * self.unit), q / (b * self.unit)
        self._fill(part, 0.5 - distance, colour, shade, p, q, alpha)

    def capsule(self, start, end, r0, r1, colour, shade: Shade | None = None, alpha=1.0, soft=1.0):
        """A bar with round ends of radii r0, r1. Shades get (t in [0, 1], q in [-1, 1])."""
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = max(math.hypot(dx, dy), 1e-6)
        part, p, q = self._local(x, y, length / 2 + max(r0, r1), math.atan2(dy, dx))
        half = length / 2 * self.unit
        along = np.clip((p + half) / (2 * half), 0.0, 1.0)
        radius = (r0 + (r1 - r0) * along) * self.unit
        beyond = p - (along * (2 * half) - half)
        distance = np.sqrt(beyond * beyond + q * q) - radius
        mask = np.clip(0.5 - distance / soft, 0.0, 1.0)
        self._fill(part, mask, colour, shade, along, np.clip(q / radius, -1.0, 1.0), alpha)

    def poly(self, points: Sequence, colour, shade: Shade | None = None, alpha=1.0):
        """A convex polygon. Shades get (p, q) in [-1, 1] over its bounding box."""
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        x, y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
        a, b = max((max(xs) - min(xs)) / 2, 1e-3), max((max(ys) - min(ys)) / 2, 1e-3)
        part, p, q = self._local(x, y, math.hypot(a, b), 0.0)
        p, q = np.broadcast_arrays(p, q)
        area = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(points)))
        distance = np.full(p.shape, -np.inf, np.float32)
        for i in range(len(points)):
            ex, ey = xs[i] - xs[i - 1], ys[i] - ys[i - 1]
            scale = math.copysign(1.0, area) / max(math.hypot(ex, ey), 1e-6)
            px, py = p - (xs[i] - x) * self.unit, q - (ys[i] - y) * self.unit
            np.maximum(distance, (px * ey - py * ex) * np.float32(scale), out=distance)
        p, q = p / (a * self.unit), q / (b * self.unit)
        self._fill(part, 0.5 - distance, colour, shade, p, q, alpha)


def ball(lit: float) -> Shade:
    """Shading of a sphere; `lit` in [-1, 1] says from which side the light comes."""
    lx, ly, lz = _light(lit)

    def shade(p, q):
        up = np.sqrt(np.maximum(1.0 - p * p - q * q, 0.0))
        return 0.5 + 0.66 * np.maximum(p * lx + q * ly + up * lz, 0.0)

    return shade


def tube(lit: float, vertical: bool = True, low: float = 0.55) -> Shade:
    """Shading of an upright cylinder (across p), or of a lying one (across q)."""
    lx, ly, lz = _light(lit)

    def shade(p, q):
        across, side = (np.clip(p, -1, 1), lx) if vertical else (np.clip(q, -1, 1), ly)
        facing = across * side + np.sqrt(1.0 - across * across) * np.sqrt(1 - side * side)
        return low + (1.14 - low) * np.maximum(facing, 0.0) + 0 * q + 0 * p

    return shade


def slope(dx: float, dy: float, base: float = 1.0) -> Shade:
    """A linear gradient: factor `base` in the middle, + dx, dy at the right and lower edges."""
    return lambda p, q: np.float32(base) + np.float32(dx) * p + np.float32(dy) * q


def _light(lit: float) -> tuple[float, float, float]:
    x, y, z = 0.7 * lit, -0.62, 0.62
    length = math.sqrt(sum(value * value for value in (x, y, z)))
    return x / length, y / length, z / length
