"Pictures of every mode and format, each with what a viewer shows of it, computed without the code that is tested."
import struct
import zlib

import numpy as np
from helpers import encoded
from PIL import Image, ImageCms

# Pictures of every mode: the file's content, and what a viewer shows on a white page, (h, w) or (h, w, 3), computed without Pillow

_random = np.random.default_rng(0)
GREY, ALPHA, INDEX = _random.integers(0, 256, (3, 8, 8), np.uint8)
COLOURS, PALETTE, OPACITY = _random.integers(0, 256, (8, 8, 3), np.uint8), _random.integers(0, 256, (256, 3), np.uint8), _random.integers(0, 256, 256, np.uint8)
DEEP, BEYOND = _random.integers(0, 65536, (8, 8), np.uint16), _random.integers(-9000, 200_000, (8, 8), np.int32)
INK = np.kron(_random.integers(0, 256, (2, 2, 4)), np.ones((8, 8, 1))).astype(np.uint8)  # C, M, Y, K, in squares that JPEG keeps


def on_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    "Laid over white with an opacity of 0 to 255."
    alpha = alpha.reshape(*alpha.shape, *(1,) * (values.ndim - alpha.ndim)) / 255
    return values * alpha + 255 * (1 - alpha)


def printed(ink: np.ndarray) -> np.ndarray:  # (h, w, 4) -> (h, w, 3)
    "What white paper shows through four inks."
    return (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255


def indexed(palette: np.ndarray = PALETTE) -> Image.Image:
    page = Image.frombytes("P", (8, 8), INDEX.tobytes())
    page.putpalette(palette.tobytes())
    return page


def luma_and_black(ycck: np.ndarray) -> bytes:
    "A JPEG file of Adobe's second kind: luma, two chromas and black, as they stand."
    content = encoded(Image.frombytes("CMYK", ycck.shape[1::-1], (255 - ycck).tobytes()), "JPEG", quality=100, subsampling=0)
    place = content.index(b"Adobe") + 11
    return content[:place] + b"\2" + content[place + 1 :]


def inks_of(ycck: np.ndarray) -> np.ndarray:
    "Its inks, by ITU-R BT.601 but for black, which is stored the other way round."
    y, cb, cr, black = ycck.astype(float).transpose(2, 0, 1)
    return np.stack([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128), 255 - black], 2).clip(0, 255)


def turned(code: int, kind: str = "PNG", page: np.ndarray = COLOURS[:5], **options) -> bytes:
    "A picture, the upper rows of COLOURS unless said otherwise, with a note how the camera was held."
    exif = Image.Exif()
    exif[0x112] = code
    return encoded(Image.fromarray(page), kind, exif=exif, **options)


def with_red_and_blue_exchanged() -> bytes:
    "The colour profile of a screen whose red lamp is blue."
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"none").replace(b"bXYZ", b"rXYZ").replace(b"none", b"bXYZ")


def tiff(values: bytes, side: int, bits: int, sample: int, order: str = "<") -> bytes:
    "A grey TIFF file without compression: sample format 1 is unsigned, 2 signed, 3 float."
    tags = {256: side, 257: side, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: len(values), 339: sample}
    table = b"".join(struct.pack(order + "HHII" if each in (273, 279) else order + "HHIHxx", each, 4 if each in (273, 279) else 3, 1, value)
                     for each, value in tags.items())
    mark = {"<": b"II", ">": b"MM"}[order]
    return mark + struct.pack(order + "HI", 42, 8 + len(values)) + values + struct.pack(order + "H", len(tags)) + table + bytes(4)


def deep_png(values: np.ndarray, colour_type: int, bits: int = 16, size: tuple[int, int] | None = None) -> bytes:  # (h, w, channels) whole numbers
    "A PNG file with so many bits a channel; colour type 0 is grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha. `size`: another one to claim."
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        digits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., -bits:]
        rows = [np.packbits(row).tobytes() for row in digits]
    head = struct.pack(">IIBBBBB", *(size or values.shape[1::-1]), bits, colour_type, 0, 0, 0)
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(b"".join(b"\0" + row for row in rows)), b"IEND": b""}
    parts = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def packed(values: np.ndarray) -> bytes:  # (h, w) of 12 bits, w even
    "Two numbers in three bytes."
    first, second = values[:, ::2].astype(np.uint16), values[:, 1::2].astype(np.uint16)
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()


def greys_of(lightness: np.ndarray) -> np.ndarray:  # 0 to 255 -> 0 to 255
    "What sRGB shows of CIE lightness 0 to 100 without colour."
    star = lightness / 255 * 100
    linear = np.where(star > 8, ((star + 16) / 116) ** 3, star / 903.3)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def tolerance(mode: str) -> int:
    "How many levels of 255 two good decoders may differ by."
    return 3 if any(word in mode for word in ("JPEG", "AVIF", "YCbCr", "LAB", "screen")) else 2 if "16 bits" in mode and "alpha" in mode else 1


SQUARES = np.kron(_random.integers(0, 256, (1, 2, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # two, which JPEG keeps
GREAT = _random.integers(0, 2**32, (8, 8), np.uint32)
MODES = {
    "grey": (encoded(Image.fromarray(GREY)), GREY),
    "grey, one value transparent": (encoded(Image.fromarray(GREY), transparency=int(GREY[2, 3])), np.where(GREY == GREY[2, 3], 255, GREY)),
    "grey, alpha": (encoded(Image.fromarray(np.dstack([GREY, ALPHA]))), on_white(GREY, ALPHA)),
    "two values": (encoded(Image.fromarray(GREY > 99)), 255 * (GREY > 99)),
    "16 bits, PNG": (encoded(Image.fromarray(DEEP)), DEEP / 257),
    "16 bits, TIFF": (encoded(Image.fromarray(DEEP), "TIFF"), DEEP / 257),
    "16 bits, PGM": (b"P5 8 8 65535 " + DEEP.astype(">u2").tobytes(), DEEP / 257),
    "10 bits, PGM": (b"P5 8 8 1023 " + (DEEP >> 6).astype(">u2").tobytes(), (DEEP >> 6) / 1023 * 255),
    "16 bits, one value transparent": (encoded(Image.fromarray(DEEP), transparency=int(DEEP[2, 3])), np.where(DEEP == DEEP[2, 3], 255, DEEP / 257)),
    "32 bits": (encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), DEEP / 257),
    "32 bits, below 0 and above 65535": (encoded(Image.fromarray(BEYOND), "TIFF"), BEYOND.clip(0) / BEYOND.max() * 255),
    "floats to 1": (encoded(Image.fromarray(np.float32(DEEP / 65535)), "TIFF"), DEEP / 257),
    "floats to 255, one missing": (encoded(Image.fromarray(np.where(DEEP == DEEP[0, 0], np.nan, GREY / GREY.max() * 255).astype(np.float32)), "TIFF"),
                                   np.where(DEEP == DEEP[0, 0], 0, GREY / GREY.max() * 255)),
    "colours": (encoded(Image.fromarray(COLOURS)), COLOURS),
    "colours, one transparent": (encoded(Image.fromarray(COLOURS), transparency=tuple(COLOURS[2, 3].tolist())),
                                 np.where((COLOURS == COLOURS[2, 3]).all(2, keepdims=True), 255, COLOURS)),
    "colours, alpha": (encoded(Image.fromarray(np.dstack([COLOURS, ALPHA]))), on_white(COLOURS, ALPHA)),
    "colours, alpha, WebP": (encoded(Image.fromarray(np.dstack([COLOURS, ALPHA])), "WEBP", lossless=True, exact=True), on_white(COLOURS, ALPHA)),
    "palette": (encoded(indexed()), PALETTE[INDEX]),
    "palette, one transparent": (encoded(indexed(), transparency=int(INDEX[2, 3])), np.where((INDEX == INDEX[2, 3])[..., None], 255, PALETTE[INDEX])),
    "palette, alpha": (encoded(indexed(), transparency=OPACITY.tobytes()), on_white(PALETTE[INDEX], OPACITY[INDEX])),
    "GIF, one transparent": (encoded(indexed(), "GIF", transparency=int(INDEX[2, 3])), np.where((INDEX == INDEX[2, 3])[..., None], 255, PALETTE[INDEX])),
    "GIF of two frames": (encoded(indexed(), "GIF", save_all=True, append_images=[indexed(255 - PALETTE)]), PALETTE[INDEX]),
    "PNG of two frames": (encoded(Image.fromarray(COLOURS), save_all=True, append_images=[Image.fromarray(255 - COLOURS)]), COLOURS),
    "four inks, TIFF": (encoded(Image.frombytes("CMYK", (16, 16), INK.tobytes()), "TIFF"), printed(INK)),
    "four inks, Adobe's JPEG": (encoded(Image.frombytes("CMYK", (16, 16), INK.tobytes()), "JPEG", quality=100, subsampling=0), printed(INK)),
    "luma, chroma, black, Adobe's JPEG": (luma_and_black(INK), printed(inks_of(INK))),
    "as it was held": (turned(1), COLOURS[:5]),
    "mirrored": (turned(2), COLOURS[:5, ::-1]),
    "head down": (turned(3), COLOURS[:5][::-1, ::-1]),
    "head down and mirrored": (turned(4), COLOURS[:5][::-1]),
    "on its side and mirrored": (turned(5), COLOURS[:5].transpose(1, 0, 2)),
    "on its left side": (turned(6), COLOURS[:5][::-1].transpose(1, 0, 2)),
    "on its other side and mirrored": (turned(7), COLOURS[:5][::-1, ::-1].transpose(1, 0, 2)),
    "on its right side": (turned(8), COLOURS[:5].transpose(1, 0, 2)[::-1]),
    "on its left side, TIFF": (turned(6, "TIFF"), COLOURS[:5][::-1].transpose(1, 0, 2)),
    "held in no known way": (turned(9), COLOURS[:5]),
    "of another screen": (encoded(Image.fromarray(COLOURS), icc_profile=with_red_and_blue_exchanged()), COLOURS[..., ::-1]),
    "of another screen, alpha": (encoded(Image.fromarray(np.dstack([COLOURS, ALPHA])), icc_profile=with_red_and_blue_exchanged()),
                                 on_white(COLOURS[..., ::-1], ALPHA)),
    "of another screen, palette": (encoded(indexed(), icc_profile=with_red_and_blue_exchanged()), PALETTE[INDEX][..., ::-1]),
    "with the profile of colours for grey": (encoded(Image.fromarray(GREY), icc_profile=with_red_and_blue_exchanged()), GREY),
    "with a damaged profile": (encoded(Image.fromarray(COLOURS), icc_profile=b"damaged"), COLOURS),
    "16 bits, TIFF of the other byte order": (tiff(DEEP.astype(">u2").tobytes(), 8, 16, 1, ">"), DEEP / 257),
    "12 bits, TIFF": (tiff(packed(DEEP >> 4), 8, 12, 1), (DEEP >> 4) / 4095 * 255),
    "32 bits, unsigned": (tiff(GREAT.astype("<u4").tobytes(), 8, 32, 1), GREAT / GREAT.max() * 255),
    "floats, two infinite": (tiff(np.where(GREY > 250, np.inf, np.where(GREY < 5, -np.inf, GREY / 255)).astype("<f4").tobytes(), 8, 32, 3),
                             np.where(GREY > 250, 255, np.where(GREY < 5, 0, GREY))),
    "16 bits and alpha": (deep_png(np.dstack([DEEP, DEEP.T]), 4), on_white(DEEP / 257, DEEP.T / 257)),
    "16 bits, colours": (deep_png(np.dstack([DEEP, DEEP.T, DEEP[::-1]]), 2), np.dstack([DEEP, DEEP.T, DEEP[::-1]]) / 257),
    "16 bits, colours and alpha": (deep_png(np.dstack([DEEP, DEEP.T, DEEP[::-1], DEEP[:, ::-1]]), 6),
                                   on_white(np.dstack([DEEP, DEEP.T, DEEP[::-1]]) / 257, DEEP[:, ::-1] / 257)),
    "two bits": (deep_png(GREY >> 6, 0, 2), (GREY >> 6) * 85),
    "four bits": (deep_png(GREY >> 4, 0, 4), (GREY >> 4) * 17),
    "text, PGM": (b"P2 8 8 255 " + b" ".join(b"%d" % value for value in GREY.flat), GREY),
    "text, PPM of 16 levels": (b"P3 8 8 15 " + b" ".join(b"%d" % value for value in (COLOURS >> 4).flat), (COLOURS >> 4) * 17),
    "two values, PBM": (b"P4 8 8 " + np.packbits(GREY > 99).tobytes(), 255 * (GREY <= 99)),
    "colours, BMP": (encoded(Image.fromarray(COLOURS), "BMP"), COLOURS),
    "colours, TIFF": (encoded(Image.fromarray(COLOURS), "TIFF", compression="tiff_lzw"), COLOURS),
    "colours, alpha, TIFF": (encoded(Image.fromarray(np.dstack([COLOURS, ALPHA])), "TIFF"), on_white(COLOURS, ALPHA)),
    "YCbCr, TIFF": (encoded(Image.fromarray(COLOURS).convert("YCbCr"), "TIFF"), COLOURS),
    "LAB, TIFF": (encoded(Image.merge("LAB", [Image.fromarray(GREY), *[Image.new("L", (8, 8), 128)] * 2]), "TIFF"), greys_of(GREY)),
    "colours, JPEG": (encoded(Image.fromarray(SQUARES), "JPEG", quality=100, subsampling=0), SQUARES),
    "grey, JPEG": (encoded(Image.fromarray(SQUARES[..., 0]), "JPEG", quality=100), SQUARES[..., 0]),
    "colours, progressive JPEG": (encoded(Image.fromarray(SQUARES), "JPEG", quality=100, subsampling=0, progressive=True), SQUARES),
    "JPEG of two pictures": (encoded(Image.fromarray(SQUARES), "MPO", quality=100, subsampling=0, save_all=True,
                                     append_images=[Image.fromarray(255 - SQUARES)]), SQUARES),
    "on its left side, JPEG": (turned(6, "JPEG", SQUARES, quality=100, subsampling=0), SQUARES[::-1].transpose(1, 0, 2)),
    "head down, grey JPEG": (turned(3, "JPEG", SQUARES[..., 0], quality=100), SQUARES[::-1, ::-1, 0]),
    "on its left side, WebP": (turned(6, "WEBP", lossless=True), COLOURS[:5][::-1].transpose(1, 0, 2)),
    "of another screen, JPEG": (encoded(Image.fromarray(SQUARES), "JPEG", quality=100, subsampling=0, icc_profile=with_red_and_blue_exchanged()),
                                SQUARES[..., ::-1]),
    "WebP of two frames": (encoded(Image.fromarray(COLOURS), "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - COLOURS)]), COLOURS),
    "colours, AVIF": (encoded(Image.fromarray(SQUARES), "AVIF", quality=100, subsampling="4:4:4"), SQUARES),
}  # fmt: skip
