"Grids of images: every pixel in its place, on the screen and in a file."
import numpy as np
import pytest
import torch
from helpers import complaint, read_image

import farmer
from farmer.plots import save_images, show_images, to_pil, to_uint8


@pytest.fixture
def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    yield matplotlib.pyplot
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (7, 3, 16, 12), (12, 1, 5, 9), (2, 3, 256, 256)])
def test_show_images(shape, pyplot):
    show_images(torch.randn(shape), columns=5, titles=range(shape[0]), row_titles=["a"])
    grid = pyplot.gca().images[0].get_array()
    assert grid.min() >= 0 and grid.max() <= 1 and grid.shape[2] == 3
    pyplot.gcf().canvas.draw()


def test_show_images_puts_every_pixel_in_its_place(pyplot):
    images = torch.rand(3, 3, 4, 4) * 2 - 1
    show_images(images, columns=2, scale=0.08)  # 8 screen pixels for an image of 4: a factor of 2, and margins of 3
    grid = torch.as_tensor(pyplot.gca().images[0].get_array())
    assert grid.shape == (22, 22, 3)
    for index, (top, left) in enumerate([(3, 3), (3, 14), (14, 3)]):
        tile = grid[top : top + 8 : 2, left : left + 8 : 2].permute(2, 0, 1)
        torch.testing.assert_close(tile, (images[index] + 1) / 2)
    assert (grid[11:, 11:] == 1).all()  # the empty place


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (2, 2, 8, 8), (0, 1, 8, 8)])
def test_images_that_cannot_be_shown(shape, tmp_path):
    complaint(ValueError, lambda: show_images(torch.zeros(shape)), tuple(shape))
    complaint(ValueError, lambda: save_images(torch.zeros(shape), tmp_path / "x.png", 2), tuple(shape))


def test_save_images(tmp_path):
    images = torch.randint(256, (3, 1, 4, 5)) / 127.5 - 1
    save_images(images, tmp_path / "grid.png", columns=2)
    page = read_image(tmp_path / "grid.png")
    assert page.shape == (3, 11, 13)  # two rows and two columns, lines of one pixel around them
    torch.testing.assert_close(page[:, 1:5, 7:12] / 127.5 - 1, images[1].expand(3, -1, -1), atol=1e-6, rtol=0)
    complaint(ValueError, lambda: save_images(images, tmp_path / "grid.txt", 2), "grid.txt", ".png")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_images_leave_as_eight_bits_and_as_pictures(channels, mode):
    levels = torch.arange(256).repeat(channels).view(1, channels, 16, 16)
    images = torch.cat([levels / 127.5 - 1, torch.full((1, channels, 16, 16), 1.7), torch.full((1, channels, 16, 16), -9.0)])
    values, pictures = to_uint8(images.requires_grad_()), to_pil(images)
    assert values.dtype == "uint8" and values.shape == (3, 16, 16, channels)
    assert (values[0] == levels[0].permute(1, 2, 0).numpy()).all() and (values[1] == 255).all() and (values[2] == 0).all()
    assert [picture.mode for picture in pictures] == [mode] * 3 and pictures[0].size == (16, 16)
    assert (np.array(pictures[0]).reshape(256, -1)[:, 0] == range(256)).all()
    complaint(ValueError, lambda: to_pil(images[0]), (channels, 16, 16))
    assert farmer.to_pil is to_pil and farmer.to_uint8 is to_uint8 and farmer.show_images is show_images
