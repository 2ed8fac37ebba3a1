"""Checks of arguments that are no numbers: tensors, images, texts, paths, devices, settings.

    check_ids("low", low, ("B", 64), top=512)
    check_images("pixels", pixels, "(3, H, W)")

Each raises a ValueError that names the argument, what it is, and what to give instead. Numbers and
switches are checked in `ranges.py`. Of minimuse only that file is imported here, so that every
other one may use this one.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from minimuse.plumbing.ranges import check_arguments, shown

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
DEVICES = re.compile(r"cpu|mps(:0)?|cuda(:\d+)?")
# Rounding may take a pixel this far out of [-1, 1].
LARGEST = 1.001
# So many are drawn of one image, which is decoded at once.
MOST_PIXELS = 2**22


def described(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, str):
        return repr(shown(value))
    return f"{shown(value)}, of type {type(value).__name__}"


# --- Tensors ---
def check_ids(
    name: str,
    ids: Any,
    shape: tuple[int | str, ...],
    top: int,
    device: torch.device | None = None,
) -> None:
    """Check token ids: whole numbers from 0 to `top`.

    A letter in `shape`, as in ("B", 64), stands for any number. `device` is where they must be.
    """
    words = f"{name} is {described(ids)}, not a tensor ({', '.join(map(str, shape))}) of int64 ids"
    if not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(words)
    if ids.dim() != len(shape):
        raise ValueError(words)
    for length, expected in zip(ids.shape, shape, strict=True):
        if not isinstance(expected, str) and length != expected:
            raise ValueError(words)
    if device is not None and ids.device != device:
        raise ValueError(
            f"{name} is on {ids.device}, and the model on {device}; give {name}.to(..)"
        )
    if ids.numel() == 0:
        return
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest > top:
        raise ValueError(f"{name} has values {lowest}..{highest}, not 0..{top}")


def check_generators(generators: Any, count: int) -> None:
    """Check that there is a random generator for each of `count` images."""
    is_list = isinstance(generators, (list, tuple))
    if not is_list or len(generators) != count:
        what = f"{len(generators)} of them" if is_list else described(generators)
        raise ValueError(f"generators is {what}, not a list of {count}, one for each image")
    for generator in generators:
        check_arguments(generator=generator)


def check_start(muse: Any, batch: int, low: Any, high: Any) -> None:
    """Check ids (B, N) that a `Muse` starts from; hidden ones are the mask id K. None hides all."""
    grid, grid_hi = muse.config.tokenizer.grid, muse.config.tokenizer_hi.grid
    if low is not None:
        check_ids("low", low, (batch, grid**2), muse.base.mask_id, muse.device)
    if high is not None:
        check_ids("high", high, (batch, grid_hi**2), muse.superres.mask_id, muse.device)


def check_complete(muse: Any, low: Any) -> None:
    """Check low-res ids (B, N) of which none is hidden."""
    shape = ("B", muse.config.tokenizer.grid**2)
    check_ids("low", low, shape, muse.base.mask_id - 1, muse.device)


def check_grid(ids: Any, grid: int, top: int, device: torch.device) -> None:
    """Check ids of images: (B, h, w) of any size, or (B, N) of grid x grid tokens."""
    is_flat = not isinstance(ids, torch.Tensor) or ids.dim() == 2
    check_ids("ids", ids, ("B", grid**2) if is_flat else ("B", "h", "w"), top, device)


def check_vectors(vectors: Any, width: int, device: torch.device) -> None:
    """Check what a decoder gets: vectors (B, h, w, C) of `width` C, finite float32."""
    is_float32 = isinstance(vectors, torch.Tensor) and vectors.dtype == torch.float32
    if not is_float32 or vectors.dim() != 4 or vectors.shape[-1] != width:
        raise ValueError(f"vectors is {described(vectors)}, not float32 (B, h, w, {width})")
    if vectors.device != device:
        raise ValueError(
            f"vectors is on {vectors.device}, and the model on {device}; give vectors.to(..)"
        )
    if not vectors.isfinite().all():
        raise ValueError("vectors has values that are not finite")


def check_images(name: str, images: Any, dims: str = "(B, 3, H, W)", values: bool = True) -> None:
    """Check images as floats in [-1, 1], of 3 channels; `values` False leaves out the values."""
    is_float = isinstance(images, torch.Tensor) and images.is_floating_point()
    right = is_float and images.dim() == dims.count(",") + 1 and images.shape[-3] == 3
    if not right or 0 in images.shape[-2:]:
        raise ValueError(f"{name} is {described(images)}, not floats {dims} in [-1, 1]")
    if not values or images.numel() == 0:
        return
    largest = float(images.abs().amax())
    if not largest <= LARGEST:  # so is NaN
        raise ValueError(
            f"{name} has a value of size {largest:g}, not floats {dims} in [-1, 1]; "
            "bytes become that by x / 127.5 - 1"
        )


def check_hole(hole: Any, pixels: torch.Tensor) -> None:
    """Check pixels (3, H, W), and a hole in them: (H, W) bool."""
    check_images("pixels", pixels, "(3, H, W)")
    shape = tuple(pixels.shape[1:])
    is_bool = isinstance(hole, torch.Tensor) and hole.dtype == torch.bool
    if not is_bool or tuple(hole.shape) != shape:
        raise ValueError(f"hole is {described(hole)}, not a bool tensor {shape} as the pixels are")


def check_same_shape(a: torch.Tensor, b: torch.Tensor) -> None:
    """Refuse to compare images of two shapes: PyTorch would repeat the smaller ones."""
    if a.shape != b.shape:
        raise ValueError(
            f"images are {tuple(a.shape)} and {tuple(b.shape)}: give two of one shape (B, 3, H, W)"
        )


def check_dtype(dtype: Any) -> None:
    """Refuse to write weights in a type that does not keep them."""
    if dtype not in DTYPES or not isinstance(dtype, torch.dtype):
        names = ", ".join(map(str, DTYPES[:-1]))
        raise ValueError(f"dtype is {described(dtype)}; choose {names} or {DTYPES[-1]}")


def check_dataset(pixels: Any, captions: Any, names: Any) -> None:
    """Check images (M, 3, H, W) of bytes, and tuples of captions and names, as many of each."""
    is_bytes = isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8
    if not is_bytes or pixels.dim() != 4 or pixels.shape[1] != 3 or 0 in pixels.shape[2:]:
        raise ValueError(f"pixels is {described(pixels)}, not a tensor (M, 3, H, W) of torch.uint8")
    if not len(pixels) == len(captions) == len(names):
        raise ValueError(
            f"there are {len(pixels)} images, captions for {len(captions)}, and {len(names)} names"
        )
    for of_one_image in captions:
        if not isinstance(of_one_image, (tuple, list)) or not of_one_image:
            raise ValueError(
                f"captions has {described(of_one_image)}; give a tuple of texts for each image"
            )
        check_texts("captions", of_one_image, "a caption")


# --- PIL images ---
def check_pictures(**images: Any) -> None:
    """Check PIL images: with pixels, and of 8 bits a channel."""
    for name, image in images.items():
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"{name} is {described(image)}, not a PIL image; "
                "Image.open(path) or Image.fromarray(array) makes one"
            )
        if 0 in image.size:
            raise ValueError(f"{name} is {image.width}x{image.height}: it has no pixel")
        if image.mode.startswith(("I", "F", "LAB")):
            raise ValueError(
                f"{name} has mode {image.mode}; give 8 bits a channel, in mode L, RGB or RGBA"
            )


def check_small(muse: Any, image: Any) -> None:
    """Check a PIL image that a `Muse` edits without a mask: not larger than in training."""
    check_pictures(image=image)
    side = muse.config.tokenizer_hi.side
    if max(image.size) > side:
        raise ValueError(
            f"the image is {image.width}x{image.height}; "
            f"at most {side}x{side} can be edited without a mask: shrink it"
        )


def check_size(muse: Any, width: int, height: int, tile: bool) -> None:
    """Refuse an image above four times the training side, unless `tile` is set.

    Such an image takes many windows, and so a long time. All of it is decoded at once, so tiles
    have an end, too.
    """
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"the image is {width}x{height}; at most {MOST_PIXELS:,} pixels are drawn: shrink it"
        )
    most = 4 * muse.config.tokenizer_hi.side
    if max(width, height) > most and not tile:
        raise ValueError(
            f"the image is {width}x{height}; at most {most}x{most} is drawn "
            "unless you ask for tiles by tile=True (--tile): shrink it, or ask"
        )


# --- Texts ---
def check_list(name: str, texts: Any) -> None:
    """Check a list or a tuple; what it holds is not looked at."""
    if not isinstance(texts, (list, tuple)):
        raise ValueError(f"{name} is {described(texts)}, not a list of texts; list(...) makes one")


def check_texts(name: str, texts: Any, element: str = "a text") -> None:
    """Check a list or a tuple of texts; `element` is what messages call one of them."""
    check_list(name, texts)
    for text in texts:
        check_is_text(element, text)


def check_text(what: str, text: Any) -> None:
    """Raise a ValueError if this is no text that has a UTF-8 encoding, or if it holds a NUL."""
    check_is_text(what, text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} {ascii(text[:40])} holds bytes that are no text, at character "
            f"{error.start + 1}; write it in UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(f"{what} {ascii(text[:40])} holds a NUL character; leave it out")


def check_is_text(what: str, text: Any) -> None:
    """Raise a ValueError if this is no text."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is {described(text)}, not a text")


# --- Names ---
def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Check a value that has a few names."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {described(value)}; choose one of {', '.join(choices)}")


def check_fractions(name: str, values: Any) -> None:
    """Check numbers from 0 to 1, in a tensor or a numpy array of any shape. NaN is none."""
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{name} is {shown(values)}, not numbers from 0 to 1")


def check_paths(**paths: Any) -> None:
    """Check names of what ships, or paths of files and directories."""
    for name, path in paths.items():
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"{name} is {described(path)}, not a name or a path")


def directory_at(path: Any) -> Path:
    """The directory to write to, at a path; "~" is the home directory."""
    check_paths(directory=path)
    if not str(path).strip():
        raise ValueError("directory is empty; give a path, such as runs/mine")
    directory = Path(path).expanduser()
    if directory.is_file():
        raise ValueError(f"directory is {str(path)!r}, a file; give a directory")
    return directory


def chosen_device(device: Any) -> str:
    """The device of this name; "auto" is CUDA, else MPS, else the CPU.

    Raises a ValueError if there is no such device, or if it cannot hold a tensor.
    """
    if device == "auto":
        return best_device()
    if DEVICES.fullmatch(str(device)) is None:
        raise ValueError(f"device is {shown(device)!r}; say auto, cpu, cuda or mps")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device is {str(device)!r}, which is not available ({reason}); say auto, cpu, cuda "
            "or mps"
        ) from None
    return str(device)


def best_device() -> str:
    """CUDA if there is a GPU of NVIDIA's (or AMD's), else MPS on a Mac of Apple's, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def check_setting_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a TypeError, as Python does, if there is no setting of a name."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"there is no setting {name!r}; there is {', '.join(known)}")


def check_draw_arguments(
    given: dict[str, Any], known: tuple[str, ...], settings: Iterable[str]
) -> None:
    """Raise a TypeError if `Muse.draw` gets a keyword that it does not have.

    settings: the names of those that belong into its argument `sampling`.
    """
    for name in given:
        if name not in known:
            message = f"draw has no argument {name!r}; besides its own, it takes {', '.join(known)}"
            if name in settings:
                message += f". Settings go into sampling=muse.sampling({name}=...)[0]"
            raise TypeError(message)


def check_samplings(kind: type, **values: Any) -> None:
    """Check that each of these settings of decoding is a `kind`, or None."""
    for name, value in values.items():
        if value is not None and not isinstance(value, kind):
            raise ValueError(
                f"{name} is {described(value)}, not a {kind.__name__}; "
                "muse.sampling(steps=3) gives sampling and sampling_hi"
            )
