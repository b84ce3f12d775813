"""Ellipses fitted to masks: of the fetal head, whose circumference is what the clinic measures."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ellipe
from skimage.measure import EllipseModel, find_contours
from skimage.measure import label as connected_components

THINNEST = 1e-3  # ratio of the axes; what is thinner is a line
FEWEST_POINTS = 5  # an ellipse has five parameters
LEAST_IN_IMAGE = 0.5  # of an ellipse's area; at half, an arc wavy by 1 % gives a circumference 3 % wrong on average


@dataclass(frozen=True)
class Ellipse:
    """An ellipse in pixels, or in mm after `scaled`.

    Attributes:
        center_x: along the columns; the middle of the first pixel is 0.
        center_y: along the rows.
        semi_axis_a: the longer one.
        semi_axis_b: the shorter one.
        angle_rad: of the longer axis from the x axis towards the y axis, in [0, π).
    """

    center_x: float
    center_y: float
    semi_axis_a: float
    semi_axis_b: float
    angle_rad: float

    def circumference(self) -> float:
        """Return 4 a E(1 - b²/a²), E the complete elliptic integral of the second kind."""
        return float(4 * self.semi_axis_a * ellipe(1 - (self.semi_axis_b / self.semi_axis_a) ** 2))

    def area(self) -> float:
        """Return π a b."""
        return math.pi * self.semi_axis_a * self.semi_axis_b

    def scaled(self, factor: float) -> "Ellipse":
        """Return it with all lengths multiplied, for example by the pixel size in mm."""
        lengths = (self.center_x, self.center_y, self.semi_axis_a, self.semi_axis_b)
        return Ellipse(*(length * factor for length in lengths), self.angle_rad)

    def filled(self, shape: tuple[int, int]) -> np.ndarray:
        """Return a mask `(Y, X)`, bool: the pixels whose middle is inside."""
        y, x = np.ogrid[: shape[0], : shape[1]]
        dx, dy = x - self.center_x, y - self.center_y
        cosine, sine = math.cos(self.angle_rad), math.sin(self.angle_rad)
        along, across = cosine * dx + sine * dy, cosine * dy - sine * dx
        return (along / self.semi_axis_a) ** 2 + (across / self.semi_axis_b) ** 2 <= 1


def fit_ellipse(x: np.ndarray, y: np.ndarray) -> Ellipse:
    """Return the ellipse that fits points `(N,)` best, by least squares of the algebraic distance.

    Raises:
        ValueError: the points lie on no ellipse.
    """
    model = estimate(x, y) if len(x) >= FEWEST_POINTS else None
    if model is None:
        raise ValueError("the points lie on no ellipse")
    (center_x, center_y), (a, b), angle = model.center, model.axis_lengths, model.theta
    if b > a:
        a, b, angle = b, a, angle + math.pi / 2
    return Ellipse(float(center_x), float(center_y), float(a), float(b), float(angle % math.pi))


def estimate(x: np.ndarray, y: np.ndarray) -> EllipseModel | None:
    """Return scikit-image's estimate, or None if there is none, or one that is a line.

    When points lie exactly on an ellipse, rounding may leave its eigenvalue problem without a real solution; moved by a
    billionth of their spread, they have one.
    """
    points = np.column_stack([x, y]).astype(float)
    noise = np.random.default_rng(0).standard_normal(points.shape) * points.std()
    with np.errstate(all="ignore"):
        for share in (0.0, 1e-9, 1e-7):
            try:
                model = EllipseModel.from_estimate(points + share * noise)
            except TypeError:  # complex solutions
                continue
            values = np.array([*model.center, *model.axis_lengths, model.theta] if model else [np.nan])
            if np.isrealobj(values) and np.isfinite(values).all():
                axes = np.sort(np.abs(model.axis_lengths))
                return model if axes[0] > THINNEST * axes[1] else None
    return None


def ellipse_of_mask(mask: np.ndarray) -> Ellipse:
    """Return the ellipse that fits the border of a mask's largest connected part.

    Where that part is cut off by the image, its straight edge there is no border: the ellipse is fitted to the rest.

    Args:
        mask: `(Y, X)`, bool. Its border runs between the pixels inside and those outside.

    Raises:
        ValueError: the mask is empty, or its border no ellipse; more than half of the ellipse is outside of the image.
    """
    part = largest_part(mask)
    contours = find_contours(np.pad(part, 1).astype(float), 0.5)
    outer = max(contours, key=len) - 1
    first, last = -0.5, np.array(mask.shape) - 0.5  # the image's border, between its pixels and those of the padding
    arc = outer[((outer > first) & (outer < last)).all(axis=1)]
    if not len(arc):
        raise ValueError("the mask has no border inside of the image")
    ellipse = fit_ellipse(arc[:, 1], arc[:, 0])
    if is_cut_by_border(part) and part.sum() < LEAST_IN_IMAGE * ellipse.area():
        raise ValueError("more than half of its ellipse is outside of the image")
    return ellipse


def is_cut_by_border(mask: np.ndarray) -> bool:
    """Return whether a mask's largest connected part lies along the image's border; a single pixel only touches it.

    Raises:
        ValueError: the mask is empty.
    """
    part = largest_part(mask)
    return any(edge.sum() > 1 for edge in (part[0], part[-1], part[:, 0], part[:, -1]))


def number_of_parts(mask: np.ndarray) -> int:
    """Return how many connected parts a mask `(Y, X)`, bool, has."""
    return int(connected_components(mask).max())


def largest_part(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a mask, `(Y, X)`, bool; a ValueError if the mask is empty."""
    parts = connected_components(mask)
    if parts.max() == 0:
        raise ValueError("the mask is empty")
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
