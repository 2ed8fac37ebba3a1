"""Compare a folder of drawn images with a folder of real ones, whatever has drawn them.

    minimuse evaluate --real photos --drawn drawings --out runs/compared
    minimuse evaluate --real photos --drawn drawings --network inception.pt --out runs/compared

The measures are those of `distances.py`, on features of Lite0 (the `eval` extra) or of a network of
yours. Their names say which: FD-lite0 is the Frechet distance of Lite0's features. It is not FID,
which is that of Inception's.

A network of yours is a TorchScript file (`torch.jit.save`). Given bytes (B, 3, H, W), uint8 from 0
to 255, it returns features (B, C); scaling the pixels, and resizing the images to what the network
needs, is its own work. If it knows an argument `return_features`, that is set, so the Inception
that StyleGAN's authors published for FID can be used as it is. A TorchScript file is a program: use
only one that you trust. Captions are not compared: a network for texts needs its own tokenizer,
which TorchScript cannot hold.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minimuse.datasets.folder import read_pixels
from minimuse.datasets.image_files import opened
from minimuse.datasets.listing import Listing
from minimuse.datasets.progress import bar
from minimuse.metrics.distances import frechet, kid, precision
from minimuse.metrics.intervals import interval
from minimuse.metrics.judge import features
from minimuse.metrics.report import TOO_FEW, recall
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.device import generator_at
from minimuse.plumbing.files import file_sha256
from minimuse.plumbing.lite0 import Lite0

BATCH = 64

# KID, precision and recall compare every image with every other one: the tables of so many take
# 200 MB each. The Frechet distance takes all images.
MOST_PAIRED = 5_000

Network = Callable[[torch.Tensor], torch.Tensor]  # bytes (B, 3, H, W) -> features (B, C)


@in_usual_state
def compare_folders(
    real: Path,
    drawn: Path,
    network: Path | None = None,
    device: str = "cpu",
    n: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how like the images of `drawn` are to those of `real`; what report.json holds.

    All drawn images must be squares of one size. Of each real one the middle square is taken and
    resized to that, as in training.
    network: a TorchScript file; None for Lite0. n: at most so many images of each, chosen by the
    seed; None for all. Raises a ValueError or FileNotFoundError that names what is wrong.
    """
    real_paths = choose_images(real, "--real", n, seed)
    drawn_paths = choose_images(drawn, "--drawn", n, seed)
    side = side_of(drawn_paths)
    name, net = load_network(network, device)
    a = features_of(drawn_paths, side, net, device, "drawn images")
    b = features_of(real_paths, side, net, device, "real images")
    few_a, few_b = chosen_rows(a, MOST_PAIRED, seed), chosen_rows(b, MOST_PAIRED, seed)
    return {
        "network": name,
        "sha256": None if network is None else file_sha256(network),
        "images": {"drawn": len(a), "real": len(b), "side": side},
        "likeness": {
            f"FD-{name}": interval(frechet, a, b),
            f"KID-{name}": interval(kid, few_a, few_b),
            f"precision-{name}": interval(precision, few_a, few_b),
            f"recall-{name}": interval(recall, few_a, few_b),
        },
    }


# --- Images ---
def choose_images(folder: Path, flag: str, n: int | None, seed: int) -> list[Path]:
    """The image files of a folder and its subfolders, or a random choice of n of them."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{flag}: no folder {str(folder)!r}; give a folder of images")
    paths = [folder / inside for inside in Listing(folder).images.values()]
    if len(paths) <= TOO_FEW:
        raise ValueError(
            f"{flag}: {folder} has {len(paths)} images (PNG, JPEG or WebP); give more than "
            f"{TOO_FEW}, since sets are compared"
        )
    if n is None or n >= len(paths):
        return paths
    if n <= TOO_FEW:
        raise ValueError(f"n is {n}; sets of images are compared, so give more than {TOO_FEW}")
    return [paths[i] for i in random_order(len(paths), seed)[:n].tolist()]


def random_order(count: int, seed: int) -> torch.Tensor:
    """A permutation (count,)."""
    return torch.randperm(count, generator=generator_at(seed, "folders"))


def side_of(paths: list[Path]) -> int:
    """The side of drawn images; a ValueError if they are not all squares of one size."""
    first = size_of(paths[0])
    for path in paths:
        width, height = size_of(path)
        if width != height or (width, height) != first:
            raise ValueError(
                f"{path} is {width}x{height}, and {paths[0].name} is {first[0]}x{first[1]}; "
                "give drawn images that are squares of one size"
            )
    return first[0]


def size_of(path: Path) -> tuple[int, int]:
    with opened(path) as image:
        return image.size


# --- Features ---
def load_network(path: Path | None, device: str) -> tuple[str, Network]:
    """The name of a network for the tables, and the network."""
    if path is None:
        lite0 = Lite0().to(device)
        return "lite0", lambda images: features(lite0, images.float() / 127.5 - 1)
    if not path.is_file():
        raise FileNotFoundError(f"--network: no file {str(path)!r}; give a TorchScript file")
    try:
        with warnings.catch_warnings():
            # PyTorch recommends torch.export instead, but published files are TorchScript.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(
            f"{path} is no TorchScript file ({reason_of(error)}); "
            "write one with torch.jit.save(torch.jit.trace(network, images), path)"
        ) from None
    arguments = [argument.name for argument in module.forward.schema.arguments]
    if "return_features" in arguments:
        module = partial(module, return_features=True)
    return path.stem, partial(checked_features, path, module)


def reason_of(error: Exception) -> str:
    """The last line of an error: PyTorch's have many, and the last one says what it is."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:200]


def checked_features(path: Path, module: Network, images: torch.Tensor) -> torch.Tensor:
    """Bytes (B, 3, H, W) -> features (B, C); a ValueError names a network that does not do that."""
    try:
        vectors = module(images)
    except RuntimeError as error:
        raise ValueError(
            f"{path} fails on uint8 images {tuple(images.shape)} ({reason_of(error)}); "
            "give a network that scales bytes itself"
        ) from None
    if not isinstance(vectors, torch.Tensor) or vectors.dim() != 2 or len(vectors) != len(images):
        what = tuple(vectors.shape) if isinstance(vectors, torch.Tensor) else type(vectors).__name__
        raise ValueError(
            f"{path} gives {what} for {len(images)} images; it must give features (B, C)"
        )
    if not vectors.isfinite().all():
        raise ValueError(f"{path} gives features that are not finite; take another network")
    return vectors.float()


@torch.no_grad()
def features_of(paths: list[Path], side: int, net: Network, device: str, what: str) -> torch.Tensor:
    """Features (M, C) of the middle squares of M image files, resized to side x side."""
    vectors = []
    for start in bar(range(0, len(paths), BATCH), f"features of {what}", "batches"):
        batch = [read_pixels(path, side, smallest=1) for path in paths[start : start + BATCH]]
        vectors.append(net(torch.stack(batch).to(device)).cpu())
    return torch.cat(vectors)


def chosen_rows(x: torch.Tensor, most: int, seed: int) -> torch.Tensor:
    """At most so many rows of features (M, C), chosen by the seed."""
    return x if len(x) <= most else x[random_order(len(x), seed)[:most]]
