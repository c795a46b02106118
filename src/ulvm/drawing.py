"""The parts of a drawn dermoscopy picture: skin, pigment, hair, ruler, bubbles, frame and light.

Lengths are in units of the square root of the frame's area, with the origin in its middle, so a
seed gives about the same picture at any size. Per pixel there are only additions,
multiplications, divisions, square roots and Pillow's resizing, no sines or exponentials, so that
platforms agree but for a rare last bit that the final rounding hides.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ulvm.image import FloatArray

Points = npt.NDArray[np.float64]  # (points, 2), x and y in units
Shape = tuple[Points, float]  # a polygon and its opacity, 0..1
Rgb = tuple[float, float, float]


class SkinTone(NamedTuple):
    """Darkest and lightest colour of a skin before illumination, red, green and blue, 0..255."""

    rgb_low: Rgb
    rgb_high: Rgb


SKIN_TONES = {
    "I": SkinTone((234, 203, 195), (246, 222, 214)),
    "II": SkinTone((218, 178, 162), (232, 198, 184)),
    "III": SkinTone((196, 150, 126), (212, 170, 146)),
    "IV": SkinTone((158, 113, 88), (182, 135, 107)),
    "V": SkinTone((122, 84, 65), (148, 106, 84)),
    "VI": SkinTone((82, 56, 46), (106, 75, 61)),
}
"""Skin by its Fitzpatrick type, from very light to very dark."""

# The share of red, green and blue that pigment of this colour leaves of the skin's.
LESION_COLOURS: dict[str, Rgb] = {
    "light brown": (0.74, 0.53, 0.36),
    "dark brown": (0.42, 0.27, 0.18),
    "black": (0.14, 0.11, 0.11),
    "blue-grey": (0.42, 0.48, 0.60),
    "red": (0.80, 0.43, 0.38),
    "white": (1.02, 1.06, 1.08),
}
_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Canvas:
    """Where pixels are: coordinates of their centres and ways to fill them."""

    size_hw: tuple[int, int]

    @property
    def scale(self) -> float:
        """Pixels per unit length."""
        return float(np.sqrt(self.size_hw[0] * self.size_hw[1]))

    @property
    def half_xy(self) -> tuple[float, float]:
        """Half the frame's width and height, in units."""
        return self.size_hw[1] / self.scale / 2, self.size_hw[0] / self.scale / 2

    def around(self, x: float = 0, y: float = 0) -> tuple[FloatArray, FloatArray]:
        """How far pixels lie right of a point, (1, width), and below it, (height, 1)."""
        height, width = self.size_hw
        columns = ((np.arange(width)[None, :] + 0.5 - width / 2) / self.scale).astype(np.float32)
        rows = ((np.arange(height)[:, None] + 0.5 - height / 2) / self.scale).astype(np.float32)
        return columns - np.float32(x), rows - np.float32(y)

    def noise(self, rng: np.random.Generator, cells: int) -> FloatArray:
        """Smooth noise in about -1..1 with `cells` independent values per unit length."""
        # The lattice covers -1..1 whatever the frame, so the size takes no part in the draw.
        lattice = 2 * rng.random((2 * cells, 2 * cells), dtype=np.float32) - 1
        half_x, half_y = self.half_xy
        corners = ((1 - half_x), (1 - half_y), (1 + half_x), (1 + half_y))
        left, top, right, bottom = (corner * cells for corner in corners)
        return resize_field(lattice, self.size_hw, (left, top, right, bottom))

    def fill(self, shapes: list[Shape]) -> FloatArray:
        """Antialiased coverage 0..1 of polygons (points (n, 2) in units, opacity 0..1)."""
        height, width = self.size_hw
        layer = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
        draw = ImageDraw.Draw(layer)
        for points, opacity in shapes:
            # Half a pixel less, since Pillow puts coordinates into the middle of a pixel.
            pixels = (points + self.half_xy) * (self.scale * _SUPERSAMPLING) - 0.5
            draw.polygon(pixels.ravel().tolist(), fill=round(255 * opacity))
        return np.asarray(layer.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)


@dataclass(frozen=True)
class PlacedLesion:
    """A placed lesion shape."""

    outside: FloatArray  # about the distance to the border in units, negative inside
    radial: FloatArray  # 0 in the middle, 1 on the border
    centre_xy: Points  # (2,)
    radius: float  # of the circle of equal area


def place_lesion(canvas: Canvas, rng: np.random.Generator, *, framed: bool) -> PlacedLesion:
    """A closed random Fourier radius around a centre, on coordinates bent by noise."""
    crosses_border = rng.random() < 0.15 and not framed
    area = 0.032 * (0.50 / 0.032) ** rng.random()
    if crosses_border:
        area = max(area, 0.07)
    # k = 1 would only move the shape.
    orders = np.arange(2, 8)
    waves = rng.uniform(-1, 1, (2, len(orders))) / orders**1.2
    waves *= rng.uniform(0.08, 0.5) / np.abs(waves).sum()
    # Area of a star shape is half the integral of its squared radius.
    radius = float(np.sqrt(area / np.pi))
    mean_radius = radius / float(np.sqrt(1 + (waves**2).sum() / 2))
    stretch = rng.uniform(1.0, 1.3)
    turn_x, turn_y = _random_direction(rng)

    half = np.array(canvas.half_xy)
    if framed:
        half = np.minimum(half, 0.42)
    room = np.maximum(half - 1.3 * radius, 0)
    centre = room * rng.uniform(-0.45, 0.45, (2, 2)).sum(axis=0)
    side, axis = rng.choice([-1, 1]), rng.integers(2)
    if crosses_border:
        centre[axis] = side * (half[axis] - radius * rng.uniform(0.3, 0.7))

    ragged = rng.uniform(0.25, 1.0) * min(1.0, radius / 0.2)
    x, y = canvas.around(*centre)
    for cells, shift in (
        (4, 0.05 * min(1.0, radius / 0.2)),
        (14, 0.014 * ragged),
        (40, 0.005 * ragged),
    ):
        x = x + np.float32(shift) * canvas.noise(rng, cells)
        y = y + np.float32(shift) * canvas.noise(rng, cells)
    u = (x * turn_x + y * turn_y) * np.float32(stretch)
    v = (y * turn_x - x * turn_y) / np.float32(stretch)
    distance = np.sqrt(u * u + v * v) + np.float32(1e-6)

    # cos(k angle) and sin(k angle) by recurrence from the unit vector.
    cos1, sin1 = u / distance, v / distance
    cos, sin = cos1, sin1
    border = np.ones_like(distance)
    for cos_weight, sin_weight in waves.T.astype(np.float32):
        cos, sin = cos * cos1 - sin * sin1, sin * cos1 + cos * sin1
        border += cos_weight * cos + sin_weight * sin
    border *= np.float32(mean_radius)
    return PlacedLesion(distance - border, distance / border, centre, radius)


def draw_pigment(
    canvas: Canvas, rng: np.random.Generator, lesion: PlacedLesion, tone: str
) -> tuple[FloatArray, set[str]]:
    """The share (3, height, width) of the skin's light that the lesion leaves, and its parts."""
    # Light pigment hardly shows on skin that is darker itself.
    is_dark = tone in ("V", "VI")
    faintest = 0.8 if is_dark else 0.5
    base = str(rng.choice(["light brown", "dark brown", "red"], p=[0.62, 0.30, 0.08]))
    base = "dark brown" if is_dark else base
    second = "black" if base == "dark brown" else "dark brown"
    names = {base, second}
    coarse, fine, finest = (canvas.noise(rng, cells) for cells in (7, 22, 70))

    mixing = rng.uniform(0.0, 0.6)
    darker_middle = rng.uniform(-0.5, 0.8)
    share = mixing + darker_middle * (0.55 - lesion.radial) + 0.7 * coarse + 0.45 * fine
    colour = _blend(_column(LESION_COLOURS[base]), LESION_COLOURS[second], 0.85 * _ramp(share))

    others = [name for name in LESION_COLOURS if name not in names]
    for name in rng.permutation(others)[: rng.choice(4, p=[0.35, 0.35, 0.2, 0.1])]:
        names.add(str(name))
        towards = np.array(_random_direction(rng)) * lesion.radius * rng.uniform(0.0, 0.6)
        spread = np.float32(lesion.radius * rng.uniform(0.3, 0.55))
        x, y = canvas.around(*(lesion.centre_xy + towards))
        patch = 0.9 - 0.8 * (x * x + y * y) / (spread * spread) + 0.9 * coarse + 0.7 * fine
        colour = _blend(colour, LESION_COLOURS[str(name)], rng.uniform(0.45, 0.85) * _ramp(patch))

    if rng.random() < 0.5:
        names.add("network")
        depth = rng.uniform(0.2, 0.42)
        lines = _draw_network(canvas, rng)
        zone = _ramp(0.4 + lesion.radial * rng.uniform(0.0, 0.5) + 0.8 * coarse)
        colour = colour * (1 - np.float32(depth) * lines * zone) + 0.04 * zone * (1 - lines)
    if rng.random() < 0.4:
        names.add("globules")
        globules = canvas.fill(_scatter_globules(rng, lesion))
        colour = _blend(colour, LESION_COLOURS[second], globules)

    softness = lesion.radius * rng.uniform(0.05, 0.3)
    width = softness * (1 + 0.8 * canvas.noise(rng, 5)) + 0.004
    # 0.5 where `outside` is 0: the mask is the half level.
    cover: FloatArray = np.clip(0.5 - lesion.outside / (2 * width), 0, 1)
    grain = np.float32(rng.uniform(0.2, 1.0)) * (0.6 * finest + 0.4 * canvas.noise(rng, 110))
    cover = _ramp(cover + cover * (1 - cover) * grain)
    density = rng.uniform(faintest, 0.98) + 0.2 * coarse + 0.18 * fine + 0.16 * grain
    strength = cover * np.clip(density, 0.25, 1)
    return 1 - strength * (1 - colour), names


def _draw_network(canvas: Canvas, rng: np.random.Generator) -> FloatArray:
    """Lines of a pigment network, 0..1: a bent honeycomb from three plane waves."""
    period = rng.uniform(0.014, 0.023)
    x, y = canvas.around()
    for share, cells in ((0.9, 16), (0.25, 50)):
        x = x + np.float32(share * period) * canvas.noise(rng, cells)
        y = y + np.float32(share * period) * canvas.noise(rng, cells)
    along, across = (np.float32(one / period) for one in _random_direction(rng))
    first: FloatArray = x * along + y * across
    # Directions at 120 degrees sum to zero, so the third wave needs no coordinates of its own.
    turn: Any = np.float32(np.sqrt(0.75))
    second: FloatArray = -0.5 * first + turn * (y * along - x * across)
    total = _wave(first) + _wave(second) + _wave(-first - second)
    return _ramp(0.3 - total * 0.4)


def _scatter_globules(rng: np.random.Generator, lesion: PlacedLesion) -> list[Shape]:
    """Small round dots all over the lesion or in one part of it."""
    clustered = rng.random() < 0.5
    middle = lesion.centre_xy
    spread = lesion.radius * 0.85
    if clustered:
        middle = middle + np.array(_random_direction(rng)) * lesion.radius * 0.4
        spread = lesion.radius * 0.45
    corners = _polygon(10)
    shapes = []
    for _ in range(int(rng.integers(15, 60))):
        dot = middle + np.array(_random_direction(rng)) * spread * float(np.sqrt(rng.random()))
        size = rng.uniform(0.003, 0.009)
        shapes.append((dot + corners * size * rng.uniform(0.7, 1.3, 2), rng.uniform(0.4, 0.9)))
    return shapes


def draw_skin(canvas: Canvas, rng: np.random.Generator, tone: str) -> FloatArray:
    """Skin (3, height, width), 0..255, with mottling, redness, fine lines and pores."""
    low, high = np.array(SKIN_TONES[tone].rgb_low), np.array(SKIN_TONES[tone].rgb_high)
    rgb = low + (high - low) * rng.random() + rng.uniform(-3, 3, 3)
    mottled = rng.uniform(0.3, 1.0)
    melanin = mottled * (0.05 * canvas.noise(rng, 9) + 0.035 * canvas.noise(rng, 30))
    redness = rng.uniform(0.02, 0.07) * canvas.noise(rng, 5) + 0.02 * canvas.noise(rng, 18)
    grain = (
        0.02 * canvas.noise(rng, 47) + 0.02 * canvas.noise(rng, 83) + 0.02 * canvas.noise(rng, 150)
    )

    # Skin lines: two bent families of furrows.
    bend = 1.2 * canvas.noise(rng, 7) + 0.5 * canvas.noise(rng, 20)
    furrows = np.zeros_like(bend)
    x, y = canvas.around()
    along, across = _random_direction(rng)
    for turn_x, turn_y in ((along, across), (0.4 * along - across, along + 0.4 * across)):
        lines = _wave((x * np.float32(turn_x) + y * np.float32(turn_y)) * 42 + bend)
        furrows += _ramp(lines * 1.5 - 0.5)
    grain -= np.float32(rng.uniform(0.0, 0.03)) * furrows * (0.5 + 0.5 * bend)

    skin = np.stack([1 - 0.7 * melanin, 1 - melanin - redness, 1 - 1.3 * melanin - redness])
    skin *= 1 + grain
    pores = []
    corners = _polygon(6)
    for x, y, size in rng.uniform(-1, 1, (int(rng.integers(0, 250)), 3)):
        pores.append((np.array([x, y]) + corners * (0.0022 + 0.0012 * size), 0.6))
    skin *= 1 - 0.18 * canvas.fill(pores)
    return np.asarray(skin * _column(rgb))


def draw_light(canvas: Canvas, rng: np.random.Generator) -> tuple[FloatArray, bool]:
    """Illumination (3, height, width) about 1, and whether its corners are clearly darker."""
    along, across = _random_direction(rng)
    slope = rng.uniform(0.0, 0.16)
    vignette = rng.random() < 0.5
    falloff = rng.uniform(0.25, 0.6) if vignette else rng.uniform(0.0, 0.1)
    off_x, off_y = rng.uniform(-0.08, 0.08, 2)
    x, y = canvas.around(off_x, off_y)
    squared = x * x + y * y
    light = 1 + np.float32(slope) * (x * np.float32(along) + y * np.float32(across))
    # The fourth power leaves the middle even; 0.25 is the squared distance of a side.
    light = light * (1 - np.float32(falloff) * squared * squared / 0.25)
    light = light * (1 + 0.03 * canvas.noise(rng, 2))
    cast = 1 + rng.uniform(-0.035, 0.035, 3)
    exposure = rng.uniform(0.95, 1.05)
    return light * _column(cast * exposure), vignette


def draw_hair(canvas: Canvas, rng: np.random.Generator, image: FloatArray, tone: str) -> set[str]:
    """Draw curved, tapered strokes over the image; get which kinds."""
    lot = rng.random()
    kinds = {"hair"} if lot < 0.65 else {"light hair"} if lot < 0.85 else {"hair", "light hair"}
    lead = np.array(_random_direction(rng))
    t = np.linspace(0, 1, 24)
    bernstein = np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1)
    taper = np.minimum(0.3 + 6 * t, 1.05 - t**2)
    for kind in sorted(kinds):
        shapes = []
        shade = rng.uniform(0.8, 1.2)
        colour = (46.0, 34.0, 29.0) if kind == "hair" else (236.0, 216.0, 188.0)
        if tone in ("V", "VI"):
            colour = (24.0, 19.0, 18.0) if kind == "hair" else (190.0, 165.0, 135.0)
        thickness = rng.uniform(0.0012, 0.0030)
        disorder = rng.uniform(0.2, 1.2)
        for _ in range(int(rng.integers(3, 28))):
            start = rng.uniform(-0.75, 0.75, 2)
            heading = lead + disorder * np.array(_random_direction(rng))
            heading *= rng.uniform(0.15, 0.9) / np.sqrt((heading**2).sum())
            side = np.array([-heading[1], heading[0]])
            first, last = rng.uniform(-0.35, 0.35, 2)
            along = np.array([0, 1 / 3, 2 / 3, 1])[:, None]
            aside = np.array([0, first, 0.8 * (first + last), last])[:, None]
            points = bernstein @ (start + along * heading + aside * side)  # (24, 2)
            width = thickness * rng.uniform(0.6, 1.2)
            shapes.append((_outline(points, width * taper), rng.uniform(0.65, 0.95)))
        cover = canvas.fill(shapes)
        shift = max(round(0.006 * canvas.scale), 1)
        image[:, shift:, shift:] *= 1 - np.float32(0.1) * cover[:-shift, :-shift]
        image[:] = _blend(image, _column(colour) * np.float32(shade), cover)
    return kinds


def draw_ruler(
    canvas: Canvas,
    rng: np.random.Generator,
    image: FloatArray,
    lesion: PlacedLesion,
    *,
    framed: bool,
) -> None:
    """Print a millimetre scale with ticks and the word mm, away from the lesion's middle."""
    upright = rng.random() < 0.25
    turn_x, turn_y = _direction((0.25 if upright else 0.0) + rng.uniform(-0.06, 0.06))
    axis_x, axis_y = np.array([turn_x, turn_y]), np.array([-turn_y, turn_x])
    half = np.minimum(canvas.half_xy, 0.44) if framed else np.array(canvas.half_xy)
    middle = half * rng.uniform(-0.25, 0.25, 2)
    across = 0 if upright else 1
    middle[across] = half[across] * (0.78 if lesion.centre_xy[across] < 0 else -0.78)
    length = rng.uniform(0.32, 0.46)
    line = rng.uniform(0.0012, 0.0018)

    def stroke(*points: tuple[float, float]) -> Shape:
        path = np.array([middle + x * axis_x + y * axis_y for x, y in points])
        return _outline(path, np.full(len(path), line)), 0.85

    start = -length / 2
    shapes = [stroke((start, 0), (-start, 0))]
    for tick in range(11):
        x = start + length * tick / 10
        shapes.append(stroke((x, 0), (x, -0.022 if tick % 5 == 0 else -0.012)))
    for left in (start, start + 0.022):
        shapes += [stroke((left + x, 0.014), (left + x, 0.028)) for x in (0.0, 0.008, 0.016)]
        shapes.append(stroke((left, 0.014), (left + 0.016, 0.014)))
    image[:] = _blend(image, (52, 44, 46), canvas.fill(shapes))


def draw_bubbles(canvas: Canvas, rng: np.random.Generator, image: FloatArray) -> None:
    """Draw gas bubbles in the gel, each a bright rim with a glint, and some glare spots."""
    centres = rng.uniform(-1, 1, (int(rng.integers(8, 30)), 2))
    glint_x, glint_y = _random_direction(rng)
    for x, y in centres * canvas.half_xy:
        size = 0.006 + 0.026 * rng.random() ** 3
        is_glare = rng.random() < 0.3
        reach = 1.4 * size
        half_x, half_y = canvas.half_xy
        columns = _window(x, reach, half_x, canvas.scale, canvas.size_hw[1])
        rows = _window(y, reach, half_y, canvas.scale, canvas.size_hw[0])
        right, below = canvas.around(x, y)
        dx, dy = right[:, columns] / np.float32(size), below[rows] / np.float32(size)
        distance = np.sqrt(dx * dx + dy * dy)
        part = image[:, rows, columns]
        if is_glare:
            part[:] = _blend(part, (250, 250, 252), 0.8 * _ramp((0.5 - distance) * 2))
            continue
        lit = 0.55 + 0.45 * (dx * np.float32(glint_x) + dy * np.float32(glint_y))
        rim = _ramp(1 - np.abs(distance - 0.86) * 6) * np.clip(lit, 0.1, 1)
        shade = _ramp(1 - np.abs(distance - 1.02) * 6)
        gx, gy = dx - np.float32(0.45 * glint_x), dy - np.float32(0.45 * glint_y)
        glint = _ramp(1.3 - np.sqrt(gx * gx + gy * gy) * 5)
        part *= 1 - 0.22 * shade
        part[:] = _blend(part, (248, 246, 246), 0.6 * rim)
        part[:] = _blend(part, (255, 255, 255), 0.9 * glint)


def draw_frame(canvas: Canvas, rng: np.random.Generator, image: FloatArray) -> FloatArray:
    """Draw the black round frame; get how visible (height, width) the skin is, 0..1."""
    radius = rng.uniform(0.50, 0.62)
    soft = rng.uniform(0.008, 0.05)
    off_x, off_y = rng.uniform(-0.03, 0.03, 2)
    x, y = canvas.around(off_x, off_y)
    distance = np.sqrt(x * x + y * y)
    visible = _ramp(0.5 + (np.float32(radius) - distance) / np.float32(soft))
    shade = rng.uniform(4, 18)
    image *= 1 - 0.35 * _ramp((distance - np.float32(radius - 0.16)) / np.float32(0.2))
    image[:] = _blend(_column((shade, shade, shade * 1.1)), image, visible)
    return visible


def add_sensor_noise(image: FloatArray, rng: np.random.Generator) -> None:
    """Add brightness noise per pixel, and colour noise in larger spots as JPEG leaves it."""
    height, width = image.shape[:2]
    strength = rng.uniform(1.0, 4.0)
    grey = rng.random((height, width, 1), dtype=np.float32)
    image += np.float32(2 * strength) * (grey - np.float32(0.5))
    spots = rng.random((-(-height // 4), -(-width // 4), 3), dtype=np.float32) - np.float32(0.5)
    for channel in range(3):
        image[..., channel] += strength * resize_field(spots[..., channel], (height, width))


def _window(middle: float, reach: float, half: float, scale: float, size: int) -> slice:
    """The pixels of one axis within `reach` of `middle`."""
    first = int((middle - reach + half) * scale)
    last = int((middle + reach + half) * scale) + 1
    return slice(max(first, 0), min(last, size))


def _outline(points: Points, half_widths: npt.NDArray[np.float64]) -> Points:
    """The polygon (2 n, 2) around a line of points (n, 2)."""
    along = np.gradient(points, axis=0)
    along /= np.sqrt((along**2).sum(axis=1, keepdims=True))
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * half_widths[:, None]
    return np.concatenate([points + side, (points - side)[::-1]])


def _direction(turn: float) -> tuple[float, float]:
    return float(np.cos(2 * np.pi * turn)), float(np.sin(2 * np.pi * turn))


def _random_direction(rng: np.random.Generator) -> tuple[float, float]:
    return _direction(rng.random())


def _polygon(corners: int) -> Points:
    """The corners (corners, 2) of a regular polygon around 0."""
    return np.array([_direction(step / corners) for step in range(corners)])


def _column(rgb: Rgb | Points) -> FloatArray:
    return np.array(rgb, dtype=np.float32)[:, None, None]


def _blend(image: FloatArray, other: Rgb | FloatArray, share: FloatArray) -> FloatArray:
    """`image` (3, height, width) with a share (height, width) of `other` mixed in."""
    other = _column(other) if isinstance(other, tuple) else other
    return image + (other - image) * share


def _ramp(value: FloatArray) -> FloatArray:
    """Smooth step: 0 up to 0, 1 from 1, 0.5 at 0.5."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def _wave(turns: FloatArray) -> FloatArray:
    """Cosine-like wave -1..1 of period 1, from parabolas."""
    phase = turns - np.floor(turns) - np.float32(0.5)
    return _ramp(2 * np.abs(phase)) * 2 - 1


def resize_field(
    field: FloatArray,
    size_hw: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> FloatArray:
    """A float field, or the part of it in box (left, top, right, bottom), at another size."""
    if box is None and field.shape == size_hw:
        return field
    image = Image.fromarray(np.ascontiguousarray(field))
    resized = image.resize((size_hw[1], size_hw[0]), Image.Resampling.BICUBIC, box)
    return np.array(resized, dtype=np.float32)
