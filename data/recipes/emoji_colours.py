"""Write the colour word of each emoji into data/emoji/index.json; `build_emoji.py` does it, too.

    python data/recipes/emoji_colours.py    # needs the packs alone; two minutes of one core

Captions say "a red automobile" where a picture has one clear colour. To find it in 8,000 pictures
takes too long to do it whenever they are loaded. The rules are in `minimuse/datasets/colours.py`;
after a change of them, this script brings the index up to date.
"""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from minimuse.datasets.colours import clear_colour

FOLDER = Path(__file__).resolve().parents[1] / "emoji"


def add_colours(index: dict, folder: Path) -> Counter:
    """Give each entry [offset, length] of the index its colour word; "" if none is clear.

    Colours that the index has are replaced. Returns how many images have each word.
    """
    counts = Counter()
    for style, entry in index.items():
        pack = (folder / f"{style}.pack").read_bytes()
        for concept, (offset, length, *_) in entry["blobs"].items():
            webp = io.BytesIO(pack[offset : offset + length])
            rgb = np.asarray(Image.open(webp).convert("RGB")) / 255
            word = clear_colour(rgb)
            entry["blobs"][concept] = [offset, length, word]
            counts[word] += 1
    return counts


def lines(table: dict) -> str:
    """JSON with one entry a line, so that a change shows as a small difference."""
    rows = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in table.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def write_index(index: dict, folder: Path) -> None:
    """Write index.json, with the colours of the pictures in the packs beside it."""
    counts = add_colours(index, folder)
    (folder / "index.json").write_text(lines(index), encoding="utf-8", newline="\n")
    print(", ".join(f"{word or 'no clear colour'} {n}" for word, n in counts.most_common()))


if __name__ == "__main__":
    write_index(json.loads((FOLDER / "index.json").read_text(encoding="utf-8")), FOLDER)
