"""Pictures: any format and mode read alike, nothing is run as a program, nothing is squashed."""

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from cervix_utils.data import images

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 12 9
%%EndComments
0 0 12 9 rectfill
%%EOF
"""


@pytest.mark.parametrize("name", ["x.eps", "x.BMP", "x.jpg"])
def test_an_eps_under_any_name_is_not_an_image_and_never_reaches_ghostscript(
    tmp_path, monkeypatch, name
):
    def refuse(*_, **__):
        raise AssertionError("Ghostscript was called")

    (tmp_path / name).write_bytes(EPS)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refuse)
    assert images.inspect(tmp_path / name) == {"reason": "not an image"}
    assert "not an image" in images.mask_problem(tmp_path / name, (12, 9))


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jp2", ".jpg", ".png", ".tif", ".webp"])
def test_every_usual_format_is_read(tmp_path, write_image, suffix):
    content = images.inspect(write_image(tmp_path / f"x{suffix}"))
    assert (content["width"], content["height"]) == (12, 9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, -1] = (255, 0, 0), (0, 255, 0)
    stored = Image.fromarray(pixels)
    exif = stored.getexif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    opened = np.asarray(images.open_image(tmp_path / "x.png"))
    turned = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1], pixels.transpose(1, 0, 2)]
    turned += [np.rot90(pixels, -1), pixels[::-1, ::-1].transpose(1, 0, 2), np.rot90(pixels)]
    np.testing.assert_array_equal(opened, turned[orientation - 1])
    assert images.inspect(tmp_path / "x.png")["width"] == opened.shape[1]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_any_mode_open_as_rgb(tmp_path, mode):
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(tmp_path / "x.tif")
    opened = images.open_image(tmp_path / "x.tif")
    assert opened.mode == "RGB" and opened.getpixel((2, 2)) == (255, 255, 255)


def test_one_changed_pixel_changes_the_digest(tmp_path):
    pixels = np.zeros((9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.bmp")
    pixels[4, 4, 1] = 1
    Image.fromarray(pixels).save(tmp_path / "c.png")
    a, b, c = (images.inspect(tmp_path / name)["sha256"] for name in ("a.png", "b.bmp", "c.png"))
    assert a == b != c


def test_masks_are_read_as_indices_whatever_the_palette(tmp_path, write_mask):
    indices = np.arange(20).reshape(4, 5) % 5
    mask = images.open_mask(write_mask(tmp_path / "a-d.bmp", indices=indices))
    assert (np.asarray(mask) == indices).all()
    Image.fromarray(indices.astype(np.uint8)).save(tmp_path / "grey.png")
    assert (np.asarray(images.open_mask(tmp_path / "grey.png")) == indices).all()


@pytest.mark.parametrize("size", [(40, 10), (10, 40), (20, 20)])
def test_squares_pad_in_the_border_colour_and_never_squash(tmp_path, size):
    """A centred disc stays round: as wide as high, in the scale of the longer side."""
    w, h = size
    y, x = np.mgrid[:h, :w]
    disc = (x - (w - 1) / 2) ** 2 + (y - (h - 1) / 2) ** 2 < 4**2
    picture = np.where(disc[..., None], (250, 10, 10), (159, 151, 172)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    square = images.squares([str(tmp_path / "x.png")], 40)
    assert square.shape == (1, 3, 40, 40) and square.dtype == np.uint8
    red = square[0, 0] > 205
    diameter = pytest.approx(8 * 40 / max(size), abs=1)
    assert red.any(axis=0).sum() == red.any(axis=1).sum() == diameter
    assert np.abs(np.argwhere(red).mean(axis=0) - 19.5).max() < 0.6  # centred
    corners = square[0][:, [0, 0, -1, -1], [0, -1, 0, -1]].T
    assert (corners == (159, 151, 172)).all()


def test_border_colour_is_the_median_of_the_outermost_pixels():
    pixels = np.full((9, 9, 3), 200, dtype=np.uint8)
    pixels[1:-1, 1:-1] = 7
    pixels[0, :5] = 0  # a corner of dirt
    assert images.border_colour(Image.fromarray(pixels)) == (200, 200, 200)


@pytest.mark.parametrize("size", [(37, 11), (14, 51), (33, 33), (130, 77)])
def test_masks_follow_the_geometry_of_their_pictures(tmp_path, size, write_mask):
    w, h = size
    y, x = np.mgrid[:h, :w]
    inside = (np.abs(x - 0.4 * w) < w / 5) & (np.abs(y - 0.6 * h) < h / 5)
    write_mask(tmp_path / "x-d.bmp", indices=np.where(inside, 2, 4))
    Image.fromarray(np.where(inside, 0, 255).astype(np.uint8)).save(tmp_path / "x.png")
    grey = images.squares([str(tmp_path / "x.png")], 64)[0, 0]
    mask = images.square_masks([str(tmp_path / "x-d.bmp")], 64)[0]
    assert set(np.unique(mask)) == {2, 4}  # nearest: no index in between
    assert ((grey < 128) != (mask == 2)).sum() <= 0.02 * 64 * 64  # the rim alone, where blurred
    assert ((grey == 0) & (mask == 4)).sum() + ((grey == 255) & (mask == 2)).sum() <= 4


def test_a_window_shows_the_original_pixels_of_the_middle(tmp_path, write_image):
    file = write_image(tmp_path / "x.png", size=(40, 30))
    middle = np.asarray(images.open_image(file))[7:23, 12:28]
    np.testing.assert_array_equal(images.square(file, 16, 16), middle)
    beyond = images.square(file, 60, 60)
    assert (beyond[0, 0] == images.border_colour(images.open_image(file))).all()


def test_order_of_squares_is_that_of_the_files(tmp_path):
    for k in range(20):
        Image.new("RGB", (9, 9), (k, k, k)).save(tmp_path / f"{k}.png")
    squares = images.squares([str(tmp_path / f"{k}.png") for k in range(20)], 32)
    assert (squares == np.arange(20)[:, None, None, None]).all()


LARGE = [((1600, 1200), 64, (200, 150)), ((900, 1200), 200, (450, 600))]


@pytest.mark.parametrize(("shape", "size", "smaller"), LARGE)
def test_large_jpegs_are_decoded_smaller_and_look_the_same(tmp_path, shape, size, smaller):
    y, x = np.mgrid[: shape[1], : shape[0]] / 150
    pixels = np.stack([np.sin(x + y), np.cos(2 * x), np.sin(x * y / 4)], axis=-1)
    Image.fromarray((127 + 100 * pixels).astype(np.uint8)).save(tmp_path / "x.jpg", quality=92)
    assert images.open_image(tmp_path / "x.jpg", size).size == smaller
    assert images.open_image(tmp_path / "x.jpg").size == shape
    whole = ImageOps.pad(images.open_image(tmp_path / "x.jpg"), (size, size), 2, (0, 0, 0))
    inside = np.s_[size // 6 : -size // 6, size // 6 : -size // 6]  # without the padding
    square = images.square(tmp_path / "x.jpg", size)
    difference = np.asarray(whole)[inside].astype(int) - square[inside]
    assert np.abs(difference).mean() < 1.5
