"""Draw images to distil a teacher on: leaves, textures, strokes, light, blur.

"Dead leaves" are shapes of all sizes that hide each other. They have the edges and the spectrum of
photographs (Lee, Mumford and Huang, IJCV 2001). Networks trained on them and on textures see
photographs surprisingly well (Baradad et al., NeurIPS 2021). Everything is drawn from a generator's
numbers, so an image is a pure function of its seed.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

_PHOTOGRAPHS = 0.15  # share of the canvases


def canvas(photographs: Sequence[np.ndarray], size: int, seed: int, index: int) -> np.ndarray:
    """Return an image uint8 [size, size, 3]: drawn, or a relit cut-out of a photograph."""
    rng = np.random.default_rng((seed, index))
    if rng.random() >= _PHOTOGRAPHS:
        return draw(rng, size)
    photograph = Image.fromarray(photographs[int(rng.integers(len(photographs)))])
    side = rng.uniform(size / 2, min(photograph.size))
    left, top = rng.uniform(0, np.subtract(photograph.size, side))
    box = (left, top, left + side, top + side)
    cut = np.asarray(photograph.resize((size, size), Image.Resampling.BICUBIC, box), np.float32)
    if rng.random() < 0.3:
        cut = np.repeat(cut.mean(-1, keepdims=True), 3, -1)
    light = np.exp(rng.normal(0, 0.2) + rng.normal(0, 0.2, 3))
    return np.clip(cut * light + rng.normal(0, 20), 0, 255).astype(np.uint8)


def draw(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw an image [size, size, 3], uint8."""
    palette = _palette(rng)
    kind = rng.random()
    image = _texture(rng, size, palette)
    if kind > 0.15:
        image = _leaves(rng, image, palette)
    if kind > 0.75:
        image = _strokes(rng, image, palette)
    return _photographed(rng, image)


def _palette(rng: np.random.Generator) -> np.ndarray:
    """Draw six colours [6, 3] in [0, 1]: sometimes alike, sometimes far from each other."""
    centre = rng.uniform(0.1, 0.9) + rng.normal(0, 0.15, 3)
    light = rng.normal(0, rng.uniform(0.05, 0.35), (6, 1))
    colour = rng.normal(0, rng.uniform(0.0, 0.25), (6, 3))
    return np.clip(centre + light + colour, 0, 1)


def _grid(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates in pixels, turned by a random angle and sometimes bent."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if rng.random() < 0.4:
        bend = rng.uniform(0, 6) * np.sin(y * rng.uniform(0.02, 0.2) + rng.uniform(0, 6))
        x = x + bend
    return x, y


def _waves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a grating, or two that cross."""
    x, y = _grid(rng, size)
    period = np.exp(rng.uniform(np.log(3), np.log(40), 2))
    wave = np.sin(2 * np.pi * x / period[0])
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * y / period[1])
    return np.clip(0.5 + rng.uniform(0.5, 2.5) * 0.5 * wave, 0, 1)


def _checks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a chessboard, or stripes with sharp edges."""
    x, y = _grid(rng, size)
    width, height = np.exp(rng.uniform(np.log(3), np.log(40), 2))
    share = rng.uniform(0.2, 0.8)
    columns = np.mod(x / width, 1) < share
    if rng.random() < 0.4:
        return columns.astype(np.float32)
    return (columns ^ (np.mod(y / height, 1) < share)).astype(np.float32)


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw noise whose amplitude falls with a power of the frequency, stretched in a direction."""
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None]
    stretch = np.exp(rng.uniform(-1.2, 1.2))
    frequency = np.hypot(fy * stretch, fx / stretch)
    frequency[0, 0] = 1
    spectrum = rng.standard_normal((size, fx.shape[1], 2)) @ np.array([1, 1j])
    noise = np.fft.irfft2(spectrum / frequency ** rng.uniform(0.3, 2.2), (size, size))
    noise = (noise - noise.mean()) / noise.std()
    return np.clip(0.5 + 0.25 * noise, 0, 1).astype(np.float32)


def _texture(rng: np.random.Generator, size: int, palette: np.ndarray) -> np.ndarray:
    """Draw a texture of two or three colours [size, size, 3], float32 in [0, 1]."""
    mix = (_waves, _checks, _noise, _noise)[rng.integers(4)](rng, size)[..., None]
    first, second, third = palette[rng.permutation(len(palette))[:3]]
    image = first * (1 - mix) + second * mix
    if rng.random() < 0.4:
        other = _noise(rng, size)[..., None]
        image = image * (1 - 0.6 * other) + third * 0.6 * other
    return image.astype(np.float32)


def _outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Return corners [n, 2] around 0 of a polygon, star, rectangle, ellipse or blob."""
    kind = rng.integers(4)
    if kind == 0:  # ellipse or blob
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        wobble = 1 + rng.uniform(0, 0.25) * np.sin(rng.integers(2, 6) * angles + rng.uniform(0, 6))
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * wobble[:, None]
    elif kind == 1:  # rectangle
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    elif kind == 2:  # polygon with corners anywhere around
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        points = np.stack([np.cos(angles), np.sin(angles)], 1)
    else:  # star
        angles = np.linspace(0, 2 * np.pi, 2 * rng.integers(3, 8), endpoint=False)
        lengths = np.where(np.arange(len(angles)) % 2, rng.uniform(0.3, 0.8), 1)
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * lengths[:, None]
    points = points * radius * np.array([1, np.exp(rng.uniform(-1.2, 0))])
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return points @ rotation


_FINER = 2  # shapes are drawn on a finer grid, so that edges are smooth


def _canvas(image: np.ndarray) -> Image.Image:
    size = image.shape[0] * _FINER
    return Image.fromarray(_bytes(image)).resize((size, size), Image.Resampling.BILINEAR)


def _shrunk(canvas: Image.Image) -> np.ndarray:
    return np.asarray(canvas.reduce(_FINER), np.float32) / 255


def _bytes(image: np.ndarray) -> np.ndarray:
    return (255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8)


def _leaves(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Draw shapes of all sizes that hide each other, some of them with a texture."""
    size = image.shape[0]
    canvas = _canvas(image)
    pen = ImageDraw.Draw(canvas)
    textures = [_canvas(_texture(rng, size, palette)) for _ in range(rng.integers(0, 4))]
    smallest = rng.uniform(1.5, 8)
    for _ in range(int(np.exp(rng.uniform(np.log(4), np.log(250))))):
        # Pareto: the number of shapes above a radius falls with its square.
        radius = min(smallest / np.sqrt(rng.uniform(0.001, 1)), 0.5 * size) * _FINER
        corners = _outline(rng, radius) + rng.uniform(0, size * _FINER, 2)
        points = [tuple(corner) for corner in corners]
        if textures and rng.random() < 0.3:
            mask = Image.new("1", canvas.size)
            ImageDraw.Draw(mask).polygon(points, fill=1)
            canvas.paste(textures[rng.integers(len(textures))], mask=mask)
        else:
            colour = palette[rng.integers(len(palette))] + rng.normal(0, 0.06, 3)
            pen.polygon(points, fill=tuple(_bytes(colour).tolist()))
    return _shrunk(canvas)


def _strokes(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Draw lines and arcs of any width over the image."""
    size = image.shape[0] * _FINER
    canvas = _canvas(image)
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 25)):
        colour = tuple(_bytes(palette[rng.integers(len(palette))]).tolist())
        width = int(np.exp(rng.uniform(0, np.log(10 * _FINER))))
        if rng.random() < 0.5:
            points = np.cumsum(rng.normal(0, size / 6, (rng.integers(2, 7), 2)), 0)
            points += rng.uniform(0, size, 2)
            pen.line([tuple(p) for p in points], fill=colour, width=width, joint="curve")
        else:
            x, y = rng.uniform(-0.2 * size, size, 2)
            right, bottom = np.array([x, y]) + rng.uniform(10, size, 2)
            start, sweep = rng.uniform(0, 360, 2)
            pen.arc([x, y, right, bottom], start, start + sweep, fill=colour, width=width)
    return _shrunk(canvas)


def _photographed(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add uneven light, a lens that blurs and a sensor with noise, in grey or colour."""
    size = image.shape[0]
    if rng.random() < 0.5:
        coarse = rng.normal(1, rng.uniform(0.05, 0.4), (3, 3))
        image = image * ndimage.zoom(coarse, size / 3, order=1)[..., None]
    if rng.random() < 0.25:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    canvas = Image.fromarray(_bytes(image))
    if rng.random() < 0.5:
        canvas = canvas.filter(ImageFilter.GaussianBlur(float(np.exp(rng.uniform(-1.5, 0.9)))))
    pixels = np.asarray(canvas, np.float32) / 255
    pixels = pixels ** np.exp(rng.uniform(-0.5, 0.5))
    if rng.random() < 0.6:
        pixels = pixels + rng.normal(0, rng.uniform(0, 0.06), pixels.shape)
    return _bytes(pixels)
