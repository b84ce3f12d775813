"""Ellipses fitted to masks: of the fetal head, whose circumference is what the clinic measures."""

import math
from dataclasses import dataclass, replace

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

    def lies_within(self, shape: tuple[int, int]) -> bool:
        """Return whether all of it is inside of an image (Y, X), whose border runs around its outermost pixels."""
        cosine, sine = math.cos(self.angle_rad), math.sin(self.angle_rad)
        reach_x = math.hypot(self.semi_axis_a * cosine, self.semi_axis_b * sine)
        reach_y = math.hypot(self.semi_axis_a * sine, self.semi_axis_b * cosine)
        axes = ((self.center_y, reach_y, shape[0]), (self.center_x, reach_x, shape[1]))
        return all(center - reach >= -0.5 and center + reach <= size - 0.5 for center, reach, size in axes)

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


def ellipse_within(mask: np.ndarray, least_overlap: float) -> Ellipse | None:
    """Return the ellipse that fits all border points of a mask's largest connected part; None if there is no good one.

    Holes of the part are filled. There is none where the mask is empty, where the points lie on no ellipse, where the
    ellipse leaves the image (an arc that is cut off says little about it), and where it covers the part badly.

    Args:
        mask: `(Y, X)`, bool.
        least_overlap: intersection over union of ellipse and part, in [0, 1].
    """
    if not mask.any():
        return None
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    y, x = rows[0], columns[0]
    part = without_holes(largest_part(mask[y : rows[-1] + 1, x : columns[-1] + 1]))
    try:
        cropped = fit_ellipse(*border_points(part))
    except ValueError:
        return None
    ellipse = replace(cropped, center_x=float(x + cropped.center_x), center_y=float(y + cropped.center_y))
    if not ellipse.lies_within(mask.shape):
        return None
    common = (cropped.filled(part.shape) & part).sum()
    return ellipse if common >= least_overlap * (ellipse.area() + part.sum() - common) else None


def border_points(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y `(N,)` of a mask's border: halfway between each pixel inside and each neighbor outside.

    What is beyond the image counts as outside.
    """
    inside = np.pad(mask, 1).astype(np.int8)
    y_beside, x_beside = np.nonzero(np.diff(inside, axis=1))
    y_below, x_below = np.nonzero(np.diff(inside, axis=0))
    return np.concatenate([x_beside - 0.5, x_below - 1.0]), np.concatenate([y_beside - 1.0, y_below - 0.5])


def without_holes(mask: np.ndarray) -> np.ndarray:
    """Return a mask `(Y, X)`, bool, with what it encloses."""
    outside = connected_components(np.pad(~mask, 1, constant_values=True), connectivity=1)
    return (outside != outside[0, 0])[1:-1, 1:-1]


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
