import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from nnunet_ssl.pictures.overlay import color_of, draw_overlay, fullest_slice, legend_entries


def test_slice_with_most_foreground():
    labels = np.zeros((4, 5, 5))
    labels[1, 0] = 1
    labels[2, :3] = 2
    assert fullest_slice(labels) == 2


def test_labels_have_the_colors_of_the_legend():
    axis = Figure().subplots()
    labels = np.array([[0, 1], [2, 3]])
    draw_overlay(axis, np.zeros((2, 2)), labels, 3)
    shown = axis.images[1]
    colors = shown.cmap(shown.norm(shown.get_array()))
    entries = legend_entries({1: "a", 2: "b", 3: "c"})
    for place, entry in (((0, 1), 0), ((1, 0), 1), ((1, 1), 2)):
        assert tuple(colors[place]) == to_rgba(entries[entry].get_facecolor()) == to_rgba(color_of(entry + 1))
    assert colors[0, 0, 3] == 0  # background is not drawn


def test_without_labels_only_the_image_is_drawn():
    axis = Figure().subplots()
    draw_overlay(axis, np.arange(4.0).reshape(2, 2), None, 1, (0, 3, 6, 0), (1, 2))
    (image,) = axis.images
    assert image.get_extent() == [0, 3, 6, 0]
    assert image.get_clim() == (1, 2)
