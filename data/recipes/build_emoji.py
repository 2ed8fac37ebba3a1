"""Make the emoji packs of data/emoji from the designers' own files.

One concept ("red apple") drawn by five studios gives pictures that share their content and differ
in style, each with a caption that somebody wrote for it. That is what a text-to-image model at toy
size needs: held-out (concept, style) pairs show whether it composes or memorises.

The sources are npm packages at fixed versions, so the packs can be rebuilt from nothing:

    pip install resvg-py pillow        # made with resvg-py 0.5.0 and Pillow 13.0.0 (libwebp 1.6.0)
    python data/build_emoji.py --work /tmp/emoji        # needs npm; some four minutes of one core

The same versions give the same bytes. It writes, beside itself:

    emoji/STYLE.pack      WebP pictures (128 px, on white), one after the other
    emoji/index.json      the checksum of each pack, and for each concept [offset, length]
    emoji/captions.json   for each concept its label, tags, group and subgroup

Left out: flags, skin-tone variants (many pictures of one thing), and pictures that a style repeats.
The licences are in LICENSES.md.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import resvg_py
from PIL import Image

SIDE = 128
PACKAGES = {  # style -> npm package; the captions come from the last one
    "openmoji": "openmoji@17.0.0",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "noto": "@iconify-json/noto@1.2.9",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "captions": "emojibase-data@17.0.0",
}


def fetch(package: str, work: Path) -> tarfile.TarFile:
    """The package's archive, downloaded unless it is already in `work`."""
    name, version = package.rsplit("@", 1)
    path = work / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        subprocess.run(["npm", "pack", package, "--silent"], cwd=work, check=True)
    return tarfile.open(path)


def read(archive: tarfile.TarFile, name: str) -> bytes:
    return archive.extractfile(f"package/{name}").read()


def plain(text: str) -> str:
    """Typewriter quotes: nobody types the curly ones into a prompt."""
    return text.translate(str.maketrans("“”‘’", "\"\"''"))


def slug(label: str) -> str:
    """ "A button (blood type)" -> "a-button-blood-type"; the packages build their names this way."""
    label = label.replace("#", " hash").replace("*", " asterisk")  # else both are just "keycap"
    ascii_only = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    return "-".join(re.findall("[a-z0-9]+", ascii_only.lower().replace("'", "")))


def codepoint(hexcode: str) -> str:
    """One spelling for a join: lower case, no leading zeros, and without fe0f ("draw in colour"),
    which some packages write and some leave out."""
    return "-".join(part for part in hexcode.lower().lstrip("0").split("-") if part != "fe0f")


def captions(archive: tarfile.TarFile) -> dict[str, dict]:
    """Concept -> label, tags, group, subgroup, codepoint; in Unicode's order."""
    words = json.loads(read(archive, "en/messages.json"))
    groups = {g["order"]: g for g in words["groups"]}
    subgroups = {g["order"]: g["message"] for g in words["subgroups"]}
    emoji = [e for e in json.loads(read(archive, "en/data.json")) if "group" in e]
    concepts = {}
    for e in sorted(emoji, key=lambda e: e["order"]):
        if groups[e["group"]]["key"] == "flags":
            continue
        concept = slug(e["label"])
        if concept in concepts:
            raise ValueError(f"two emoji are called {concept!r}: teach slug() to tell them apart")
        concepts[concept] = {
            "label": plain(e["label"]),
            "tags": [plain(t) for t in e.get("tags", [])],
            "group": groups[e["group"]]["message"],
            "subgroup": subgroups[e["subgroup"]],
            "codepoint": codepoint(e["hexcode"]),
        }
    return concepts


def rasterise(svg: str) -> Image.Image:
    # No system fonts: a picture must not depend on the machine that draws it.
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=SIDE, height=SIDE, background="#ffffff", skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def iconify(archive: tarfile.TarFile, concepts: dict[str, dict]) -> dict[str, Image.Image]:
    """Twemoji, Noto and Fluent flat come as one JSON file each: icon name -> SVG body."""
    icons = json.loads(read(archive, "icons.json"))
    names = {codepoint(c): n for c, n in json.loads(read(archive, "chars.json")).items()}
    pictures = {}
    for concept, caption in concepts.items():
        name = names.get(caption["codepoint"], concept)
        flip = ""
        if name in icons["aliases"]:
            alias = icons["aliases"][name]
            if set(alias) - {"parent", "hFlip"}:
                raise ValueError(
                    f"alias {name!r} asks for {sorted(alias)}: teach iconify() to draw it"
                )
            name = alias["parent"]
            flip = "hFlip" if "hFlip" in alias else ""
        if name not in icons["icons"]:
            continue
        icon = icons["icons"][name]
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        # A square canvas: a wide or tall icon is centred in it, not stretched.
        canvas = max(width, height)
        left, top = (width - canvas) / 2, (height - canvas) / 2
        body = icon["body"]
        if flip:
            body = f'<g transform="matrix(-1 0 0 1 {width} 0)">{body}</g>'
        pictures[concept] = rasterise(
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left:g} {top:g} {canvas} {canvas}">{body}</svg>'
        )
    return pictures


def openmoji(archive: tarfile.TarFile, concepts: dict[str, dict]) -> dict[str, Image.Image]:
    folder = "package/color/svg/"
    files = {codepoint(Path(n).stem): n for n in archive.getnames() if n.startswith(folder)}
    return {
        concept: rasterise(archive.extractfile(files[c["codepoint"]]).read().decode())
        for concept, c in concepts.items()
        if c["codepoint"] in files
    }


def fluent_3d(archive: tarfile.TarFile, concepts: dict[str, dict]) -> dict[str, Image.Image]:
    files = {codepoint(Path(n).stem): n for n in archive.getnames() if n.endswith(".webp")}
    pictures = {}
    for concept, c in concepts.items():
        if c["codepoint"] in files:
            picture = Image.open(archive.extractfile(files[c["codepoint"]])).convert("RGBA")
            # White first, then smaller: the colour of a transparent pixel must not bleed in.
            white = Image.new("RGBA", picture.size, "white")
            pictures[concept] = (
                Image.alpha_composite(white, picture)
                .convert("RGB")
                .resize((SIDE, SIDE), Image.Resampling.BOX)
            )
    return pictures


def pack(pictures: dict[str, Image.Image], path: Path) -> dict:
    """Write one style's pictures end to end; return its entry in the index."""
    blobs, data, seen = {}, bytearray(), set()
    for concept, picture in pictures.items():
        if picture.tobytes() in seen:
            continue
        seen.add(picture.tobytes())
        webp = io.BytesIO()
        picture.save(webp, "WEBP", quality=90, method=6)
        blobs[concept] = [len(data), len(webp.getvalue())]
        data += webp.getvalue()
    path.write_bytes(data)
    print(
        f"{path.name:16} {len(blobs):5} pictures {len(pictures) - len(blobs):3} repeats dropped "
        f"{len(data) / 1e6:5.2f} MB"
    )
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "blobs": blobs}


def lines(table: dict) -> str:
    """JSON with one entry a line, so that a change shows as a small difference."""
    rows = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in table.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the emoji packs of data/emoji.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the downloads")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    out = Path(__file__).resolve().parent / "emoji"
    out.mkdir(exist_ok=True)

    concepts = captions(fetch(PACKAGES["captions"], work))
    draw = {"openmoji": openmoji, "fluent-3d": fluent_3d}
    index = {}
    for style in list(PACKAGES)[:-1]:
        pictures = draw.get(style, iconify)(fetch(PACKAGES[style], work), concepts)
        index[style] = pack(pictures, out / f"{style}.pack")
    (out / "index.json").write_text(lines(index), encoding="utf-8", newline="\n")
    kept = {
        c: {k: v for k, v in caption.items() if k != "codepoint"}
        for c, caption in concepts.items()
        if any(c in entry["blobs"] for entry in index.values())
    }
    (out / "captions.json").write_text(lines(kept), encoding="utf-8", newline="\n")
    shared = sum(all(c in entry["blobs"] for entry in index.values()) for c in kept)
    print(
        f"{len(kept)} concepts, {shared} in every style, "
        f"{sum(entry['bytes'] for entry in index.values()) / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
