"""Make the emoji packs of data/emoji from the designers' own files.

Each concept ("red apple") is drawn in five styles. Its images share content and differ in style,
and it has labels and tags that people wrote. This suits a small text-to-image model: held-out
(concept, style) pairs show whether it composes or memorises.

The sources are npm packages of fixed versions, so the packs can be rebuilt:

    pip install -e '.[data]'           # made with resvg-py 0.5.0 and Pillow 13.0.0 (libwebp 1.6.0)
    python data/recipes/build_emoji.py --work /tmp/emoji     # needs npm; six minutes of one core

The same versions give the same bytes. It writes to data/emoji:

    STYLE.pack      WebP images (128 px, on white), one after the other
    index.json      the checksum of each pack, and for each concept [offset, length, colour word]
    captions.json   for each concept its label, tags, group and subgroup, and which tags are things

Left out: flags, skin-tone variants (many images of one concept), and images that a style repeats.
The licences are in data/LICENSES.md.
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
from emoji_colours import lines, write_index
from emoji_things import add_things
from PIL import Image

SIDE = 128  # of an image, in pixels
# npm packages, by style.
STYLES = {
    "openmoji": "openmoji@17.0.0",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "noto": "@iconify-json/noto@1.2.9",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
}
CAPTIONS = "emojibase-data@17.0.0"


def fetch(package: str, work: Path) -> tarfile.TarFile:
    """The package's archive, downloaded unless it is already in `work`."""
    name, version = package.rsplit("@", 1)
    path = work / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        subprocess.run(["npm", "pack", package, "--silent"], cwd=work, check=True)
    return tarfile.open(path)


def read(archive: tarfile.TarFile, name: str) -> bytes:
    """The content of one file of a package."""
    return archive.extractfile(f"package/{name}").read()


def plain(text: str) -> str:
    """Replace curly quotes by straight ones, which people type into a prompt."""
    return text.translate(str.maketrans("“”‘’", "\"\"''"))


def slug(label: str) -> str:
    """A label as the packages write names: "A button (blood type)" -> "a-button-blood-type"."""
    # Otherwise the names of these two would both be "keycap".
    label = label.replace("#", " hash").replace("*", " asterisk")
    ascii_only = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    return "-".join(re.findall("[a-z0-9]+", ascii_only.lower().replace("'", "")))


def codepoint(hexcode: str) -> str:
    """One spelling for all packages: lower case, no leading zeros, and without fe0f.

    fe0f means "draw in colour"; some packages write it and some leave it out.
    """
    parts = hexcode.lower().lstrip("0").split("-")
    return "-".join(part for part in parts if part != "fe0f")


def captions(archive: tarfile.TarFile) -> dict[str, dict]:
    """Concept -> label, tags, group, subgroup, codepoint; in Unicode's order."""
    messages = json.loads(read(archive, "en/messages.json"))
    groups = {group["order"]: group for group in messages["groups"]}
    subgroups = {group["order"]: group["message"] for group in messages["subgroups"]}
    all_emoji = [e for e in json.loads(read(archive, "en/data.json")) if "group" in e]
    all_emoji.sort(key=lambda e: e["order"])
    concepts = {}
    for emoji in all_emoji:
        group = groups[emoji["group"]]
        if group["key"] == "flags":
            continue
        concept = slug(emoji["label"])
        if concept in concepts:
            raise ValueError(f"two emoji are called {concept!r}: teach slug() to tell them apart")
        concepts[concept] = {
            "label": plain(emoji["label"]),
            "tags": [plain(tag) for tag in emoji.get("tags", [])],
            "group": group["message"],
            "subgroup": subgroups[emoji["subgroup"]],
            "codepoint": codepoint(emoji["hexcode"]),
        }
    return concepts


def rasterise(svg: str) -> Image.Image:
    """Draw an SVG on white, SIDE x SIDE pixels."""
    # No system fonts: an image must not depend on the machine that draws it.
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=SIDE, height=SIDE, background="#ffffff", skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def find_icon(icons: dict, name: str) -> tuple[dict, bool] | None:
    """(icon, whether to mirror it) for a name or an alias in an Iconify file, if it has one."""
    mirrored = False
    if name in icons["aliases"]:
        alias = icons["aliases"][name]
        if set(alias) - {"parent", "hFlip"}:
            raise ValueError(
                f"alias {name!r} asks for {sorted(alias)}: teach find_icon() to draw it"
            )
        name = alias["parent"]
        mirrored = "hFlip" in alias
    if name not in icons["icons"]:
        return None
    return icons["icons"][name], mirrored


def iconify(archive: tarfile.TarFile, concepts: dict[str, dict]) -> dict[str, Image.Image]:
    """Twemoji, Noto and Fluent flat come as one JSON file each: icon name -> SVG body."""
    icons = json.loads(read(archive, "icons.json"))
    characters = json.loads(read(archive, "chars.json"))
    names = {codepoint(hexcode): name for hexcode, name in characters.items()}
    images = {}
    for concept, caption in concepts.items():
        icon_and_mirrored = find_icon(icons, names.get(caption["codepoint"], concept))
        if icon_and_mirrored is None:
            continue
        icon, mirrored = icon_and_mirrored
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        # A square canvas: a wide or tall icon is centred in it, not stretched.
        canvas = max(width, height)
        left, top = (width - canvas) / 2, (height - canvas) / 2
        body = icon["body"]
        if mirrored:
            body = f'<g transform="matrix(-1 0 0 1 {width} 0)">{body}</g>'
        images[concept] = rasterise(
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left:g} {top:g} {canvas} {canvas}">{body}</svg>'
        )
    return images


def openmoji(archive: tarfile.TarFile, concepts: dict[str, dict]) -> dict[str, Image.Image]:
    """OpenMoji comes as one SVG file per emoji, named by its codepoint."""
    folder = "package/color/svg/"
    files = {codepoint(Path(n).stem): n for n in archive.getnames() if n.startswith(folder)}
    images = {}
    for concept, caption in concepts.items():
        file = files.get(caption["codepoint"])
        if file is not None:
            images[concept] = rasterise(archive.extractfile(file).read().decode())
    return images


def fluent_3d(archive: tarfile.TarFile, concepts: dict[str, dict]) -> dict[str, Image.Image]:
    """Fluent 3D comes as one transparent WebP file per emoji, named by its codepoint."""
    files = {codepoint(Path(n).stem): n for n in archive.getnames() if n.endswith(".webp")}
    images = {}
    for concept, caption in concepts.items():
        file = files.get(caption["codepoint"])
        if file is None:
            continue
        image = Image.open(archive.extractfile(file)).convert("RGBA")
        # Put it on white before making it smaller: otherwise the colours of transparent pixels
        # would mix into the visible ones.
        white = Image.new("RGBA", image.size, "white")
        on_white = Image.alpha_composite(white, image).convert("RGB")
        images[concept] = on_white.resize((SIDE, SIDE), Image.Resampling.BOX)
    return images


# How to read the package of each style.
READERS = {
    "openmoji": openmoji,
    "twemoji": iconify,
    "noto": iconify,
    "fluent-flat": iconify,
    "fluent-3d": fluent_3d,
}


def pack(images: dict[str, Image.Image], path: Path) -> dict:
    """Write one style's images end to end, repeated ones once. Returns its entry in the index."""
    blobs, data, seen = {}, bytearray(), set()
    for concept, image in images.items():
        if image.tobytes() in seen:
            continue
        seen.add(image.tobytes())
        webp = io.BytesIO()
        image.save(webp, "WEBP", quality=90, method=6)
        blobs[concept] = [len(data), len(webp.getvalue())]
        data += webp.getvalue()
    path.write_bytes(data)
    print(
        f"{path.name:16} {len(blobs):5} images {len(images) - len(blobs):3} repeats dropped "
        f"{len(data) / 1e6:5.2f} MB"
    )
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "blobs": blobs}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the emoji packs of data/emoji.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the downloads")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    out = Path(__file__).resolve().parents[1] / "emoji"
    out.mkdir(exist_ok=True)

    concepts = captions(fetch(CAPTIONS, work))
    index = {}
    for style, package in STYLES.items():
        images = READERS[style](fetch(package, work), concepts)
        index[style] = pack(images, out / f"{style}.pack")
    write_index(index, out)

    kept, in_every_style = {}, 0
    for concept, caption in concepts.items():
        styles = [style for style, entry in index.items() if concept in entry["blobs"]]
        if styles:
            # The codepoint only served to find the images.
            kept[concept] = {key: x for key, x in caption.items() if key != "codepoint"}
        if len(styles) == len(STYLES):
            in_every_style += 1
    add_things(kept, work)
    (out / "captions.json").write_text(lines(kept), encoding="utf-8", newline="\n")
    megabytes = sum(entry["bytes"] for entry in index.values()) / 1e6
    print(f"{len(kept)} concepts, {in_every_style} in every style, {megabytes:.2f} MB")


if __name__ == "__main__":
    main()
