"""`minimuse evaluate --real DIR --drawn DIR`: two folders of images, and a network by its file.

pytest tests/test_compare.py
"""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from minimuse.cli import main
from minimuse.cli.evaluate import evaluate
from minimuse.metrics import folders
from minimuse.metrics.distances import frechet, kid, precision
from minimuse.metrics.folders import compare_folders
from minimuse.plumbing.lite0 import has_lite0


class Means(torch.nn.Module):
    """Three features: the mean of each colour, as bytes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


class Inception(torch.nn.Module):
    """It gives classes, as the published file does, unless it is asked for features."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if return_features:
            return img.float().mean(dim=(2, 3))
        return torch.zeros(len(img), 5)


class Floats(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(images, torch.ones(2, 3, 1, 1)).mean(dim=(2, 3))


class Maps(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


class Nan(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3)) / 0 * 0


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A folder with each of these networks as a TorchScript file."""
    folder = tmp_path_factory.mktemp("networks")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        for network in (Means, Inception, Floats, Maps, Nan):
            torch.jit.save(torch.jit.script(network()), folder / f"{network.__name__.lower()}.pt")
    (folder / "weights.pt").write_bytes(b"no archive")
    return folder


def write_images(folder, seed, size, brightest):
    """Write noise, each image with another brightest pixel."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for i, top in enumerate(brightest):
        pixels = random.integers(0, top, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")


@pytest.fixture
def two(tmp_path):
    """A folder with 14 real images, 40 x 32, and 12 drawn ones, 32 x 32 and less different."""
    write_images(tmp_path / "real", 0, (40, 32), brightest=range(100, 240, 10))
    write_images(tmp_path / "drawn", 1, (32, 32), brightest=[200] * 12)
    return tmp_path


def compare(folder, *more):
    real, drawn, out = folder / "real", folder / "drawn", folder / "out"
    command = ["evaluate", "--real", real, "--drawn", drawn, "--out", out, "--device", "cpu", *more]
    return main([str(word) for word in command])


def means_by_hand(folder, columns):
    rows = []
    for path in sorted(folder.glob("*.png")):
        rows.append(np.asarray(Image.open(path))[:, columns].mean(axis=(0, 1)))
    return torch.from_numpy(np.stack(rows))


def test_measures_by_hand(two, networks, capsys):
    """The middle square of each real image, and the measures of a model's report."""
    assert compare(two, "--network", networks / "means.pt", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((two / "out" / "report.json").read_text())
    real = means_by_hand(two / "real", slice(4, 36))
    drawn = means_by_hand(two / "drawn", slice(0, 32))
    likeness = {name: value["value"] for name, value in found["likeness"].items()}
    assert likeness == {
        "FD-means": pytest.approx(frechet(drawn, real), rel=1e-3),
        "KID-means": pytest.approx(kid(drawn, real), rel=1e-3),
        "precision-means": precision(drawn, real),
        "recall-means": precision(real, drawn),
    }
    assert found["images"] == {"drawn": 12, "real": 14, "side": 32}
    assert likeness["precision-means"] > likeness["recall-means"]


def test_features_and_not_classes(two, networks):
    """The classes of this Inception are all 0, and so would be the distance."""
    arguments = (two / "real", two / "drawn")
    means = compare_folders(*arguments, networks / "means.pt")["likeness"]
    inception = compare_folders(*arguments, networks / "inception.pt")["likeness"]
    assert inception["FD-inception"] == means["FD-means"]


@pytest.mark.skipif(not has_lite0(), reason="needs the eval extra")
def test_lite0_is_never_called_fid(two, capsys):
    assert compare(two) == 0
    table = capsys.readouterr().out
    assert table == (two / "out" / "report.md").read_text()
    assert "FD-lite0" in table and "KID-lite0" in table and "FID" not in table
    assert "12 drawn and 14 real images of 32 pixels" in table


def test_a_set_is_at_no_distance_from_itself(two, networks):
    same = compare_folders(two / "drawn", two / "drawn", networks / "means.pt")["likeness"]
    assert same["FD-means"]["value"] == pytest.approx(0, abs=1e-6)
    assert same["precision-means"]["value"] == same["recall-means"]["value"] == 1


def test_so_many_images(two, networks):
    """--n and the seed choose; without --n all are taken, but by KID only so many."""
    arguments = (two / "real", two / "drawn", networks / "means.pt", "cpu")
    every = compare_folders(*arguments)
    ten = compare_folders(*arguments, n=10)
    assert ten["images"] == {"drawn": 10, "real": 10, "side": 32}
    assert ten == compare_folders(*arguments, n=10)
    assert ten["likeness"] != compare_folders(*arguments, n=10, seed=1)["likeness"]
    assert compare_folders(*arguments, n=100) == every


def test_measures_of_pairs_take_a_limited_number(two, networks, monkeypatch):
    arguments = (two / "real", two / "drawn", networks / "means.pt")
    every = compare_folders(*arguments)["likeness"]
    monkeypatch.setattr(folders, "MOST_PAIRED", 10)
    few = compare_folders(*arguments)["likeness"]
    assert few["FD-means"] == every["FD-means"] and few["FD-means"]["n"] == 12
    assert few["KID-means"]["n"] == few["precision-means"]["n"] == 10


# --- Bad inputs ---


def refused(capsys, code, *words):
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    "name, words",
    [
        ("gone.pt", ["no file", "TorchScript"]),
        ("weights.pt", ["weights.pt is no TorchScript file", "torch.jit.save"]),
        ("floats.pt", ["floats.pt fails on uint8 images", "scales bytes itself"]),
        ("maps.pt", ["maps.pt gives (12, 3, 32, 32) for 12 images", "(B, C)"]),
        ("nan.pt", ["nan.pt gives features that are not finite"]),
    ],
)
def test_networks_that_are_refused(name, words, two, networks, capsys):
    refused(capsys, compare(two, "--network", networks / name), *words)
    assert not list((two / "out").glob("*"))


def test_images_that_are_refused(two, networks, capsys):
    network = ("--network", networks / "means.pt")
    odd = two / "drawn" / "odd.png"
    Image.new("RGB", (48, 48)).save(odd)
    refused(capsys, compare(two, *network), "odd.png is 48x48", "squares of one size")
    odd.write_bytes(b"no image")
    refused(capsys, compare(two, *network), "odd.png cannot be read", "save it again")
    odd.unlink()
    refused(capsys, compare(two, *network, "--n", "8"), "n is 8", "more than 8")
    for path in sorted((two / "real").iterdir())[8:]:
        path.unlink()
    refused(capsys, compare(two, *network), "--real", "has 8 images", "more than 8")
    (two / "real").rename(two / "moved")
    refused(capsys, compare(two, *network), "--real: no folder")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--real", "."], "give --real DIR and --drawn DIR"),
        (["--drawn", "."], "give --real DIR and --drawn DIR"),
        (["--network", "x.pt"], "give --real DIR and --drawn DIR"),
        (["--real", ".", "--drawn", ".", "--data", "emoji"], "--data is for a model"),
    ],
)
def test_flags_that_do_not_go_together(flags, words, tmp_path, capsys):
    refused(capsys, main(["evaluate", "--out", str(tmp_path / "out"), *flags]), words)


def test_a_model_is_still_measured_with_256_images(monkeypatch, tmp_path):
    seen = []

    def noting_evaluate(muse, out, n, **_):
        seen.append(n)
        out.mkdir()
        (out / "report.md").write_text("")

    monkeypatch.setattr("minimuse.cli.evaluate.evaluate", noting_evaluate)
    assert main(["evaluate", "--model", "toy", "--out", str(tmp_path / "out")]) == 0
    assert seen == [256] and evaluate.__defaults__[0] == 256
