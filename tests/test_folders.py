"""Folders of images and captions as people have them: read, or refused by name.

    pytest tests/test_folders.py              # a few generated folders
    pytest tests/test_folders.py -m slow      # 500 of them

The first half has one test for each way in which systems and people write names. The second half
generates folders. What must be said of each is computed from its description, and not by reading
it: `Expected` knows nothing of the loader.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minimuse.cli import main
from minimuse.datasets import load
from minimuse.datasets.captions import find_pairs
from minimuse.plumbing.device import stable_hash
from minimuse.runs import kept

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def save_image(path, colour="red", size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}
    Image.new("RGB", size, colour).save(path, formats[path.suffix.lower()])


def add(root, name, caption=None):
    """An image, and its text file if it has a caption."""
    save_image(root / name)
    if caption is not None:
        (root / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def add_table(root, *rows):
    (root / "captions.csv").write_text("\n".join(["file,caption", *rows]), encoding="utf-8")


def refusal(root):
    """The one line that says why a folder is refused."""
    with pytest.raises((ValueError, OSError)) as error:
        load(str(root), "train", 8)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- Names as systems make them ---
@pytest.mark.parametrize("of_image", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("of_caption", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("form", ["txt", "csv"])
def test_composed_and_decomposed_letters_are_the_same(tmp_path, of_image, of_caption, form):
    save_image(tmp_path / f"{of_image}.png")
    if form == "txt":
        (tmp_path / f"{of_caption}.txt").write_text("a cup")
    else:
        add_table(tmp_path, f"{of_caption}.png,a cup")
    pairs = find_pairs(tmp_path)
    # The name decides on the split, so it is the same on every system.
    assert pairs.keys() == {f"{COMPOSED}.png"}
    assert pairs[f"{COMPOSED}.png"].captions == ("a cup",)


def test_two_files_of_one_name_are_refused(tmp_path):
    for name in (COMPOSED, DECOMPOSED):
        add(tmp_path, f"{name}.png", "a cup")
    if len(list(tmp_path.iterdir())) < 4:
        pytest.skip("this file system takes them for one")
    assert "two files" in refusal(tmp_path)


@pytest.mark.parametrize(
    "written",
    ["sub\\a.png", ".\\sub\\a.png", "./sub/a.png", " sub/a.png ", "SUB/A.PNG", "sub/../sub/a.png"],
)
def test_rows_as_other_systems_write_them(tmp_path, written):
    add(tmp_path, "sub/a.png")
    add(tmp_path, "b.png")
    add_table(tmp_path, f"{written},a cat", "b.png,a dog")
    assert find_pairs(tmp_path)["sub/a.png"].captions == ("a cat",)


def test_a_row_with_the_whole_path(tmp_path):
    add(tmp_path, "a.png")
    add_table(tmp_path, f"{tmp_path / 'a.png'},a cat")
    assert find_pairs(tmp_path)["a.png"].captions == ("a cat",)


def test_a_backslash_in_a_name_is_a_letter_where_it_may_be(tmp_path):
    if os.name == "nt":
        pytest.skip("there it is none")
    add(tmp_path, "sub\\a.png")
    add(tmp_path, "sub/a.png")
    add_table(tmp_path, "sub\\a.png,one", "sub/a.png,two")
    pairs = find_pairs(tmp_path)
    assert pairs["sub\\a.png"].captions == ("one",) and pairs["sub/a.png"].captions == ("two",)


def test_case_decides_where_it_can(tmp_path):
    for name in ("a.png", "A.png"):
        save_image(tmp_path / name)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system takes them for one")
    add_table(tmp_path, "a.png,small", "A.png,large")
    assert find_pairs(tmp_path)["A.png"].captions == ("large",)
    add_table(tmp_path, "a.PNG,small", "A.png,large")
    assert "a.PNG" in refusal(tmp_path)


def test_upper_case_everywhere(tmp_path):
    save_image(tmp_path / "A.PNG")
    save_image(tmp_path / "b.JPG")
    (tmp_path / "a.TXT").write_text("a cat")
    (tmp_path / "B.txt").write_text("a dog")
    captions = {name: pair.captions for name, pair in find_pairs(tmp_path).items()}
    assert captions == {"A.PNG": ("a cat",), "b.JPG": ("a dog",)}
    (tmp_path / "Captions.CSV").write_text("File, Caption\na.png,from the table\nB.jpg,too\n")
    assert find_pairs(tmp_path)["A.PNG"].captions == ("from the table",)


# --- Tables as people write them ---
def table_of(root, text, *files):
    for file in files or ("a.png", "b.png"):
        save_image(root / file)
    (root / "captions.csv").write_bytes(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        'file, caption\na.png, "a red thing, large"\nb.png, "a blue thing"\n',
        'file,caption,\na.png,"a red thing, large",\nb.png,a blue thing,,\n',
        '\nfile,caption\n\na.png,"a red\n thing, large"\n,\n\nb.png,a blue thing\n,\n',
        'n,Caption ,FILE\r\n1,"a red thing, large",a.png\r\n2,a blue thing,b.png\r\n',
    ],
    ids=["spaces", "commas at the end", "empty lines", "other columns"],
)
def test_tables_as_people_write_them(tmp_path, text):
    table_of(tmp_path, text)
    captions = [pair.captions for pair in find_pairs(tmp_path).values()]
    assert captions == [("a red thing, large",), ("a blue thing",)]


@pytest.mark.parametrize("column", ["file", "caption"])
def test_two_columns_of_one_name_are_refused(tmp_path, column):
    table_of(tmp_path, f"file,caption, {column.title()}\na.png,red,a.png\nb.png,blue,b.png\n")
    assert f"has 2 columns called {column}" in refusal(tmp_path)


@pytest.mark.parametrize(
    "rows, number",
    [
        ('a.png,x\nb.png,"a "blue" thing"\n', 3),
        ('a.png,"x\nb.png,y\n', 2),
        ('\n\na.png,"x\ny"\n\nb.png,"a "blue" thing"\n', 7),
        ("a.png,x\n\n\nb.png,y,z\n", 5),
        ("a.png,x\n\nnone.png,y\n", 4),
        ('a.png,"x\ny"\n"a.png",y\n', 4),
        ("a.png,x\nb.png," + 200_000 * "y" + "\n", 3),
    ],
)
def test_the_line_at_fault_is_named(tmp_path, rows, number):
    table_of(tmp_path, "file,caption\n" + rows)
    assert f"captions.csv line {number}: " in refusal(tmp_path).replace(" has ", ": has ")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "latin-1"])
@pytest.mark.parametrize("form", ["txt", "csv"])
def test_a_text_of_another_encoding_is_refused(tmp_path, encoding, form):
    save_image(tmp_path / "a.png")
    add(tmp_path, "b.png", "a dog" if form == "txt" else None)
    text = "a caf\u00e9" if form == "txt" else "file,caption\na.png,a caf\u00e9\nb.png,a dog\n"
    path = tmp_path / ("a.txt" if form == "txt" else "captions.csv")
    path.write_bytes(text.encode(encoding))
    assert f"{path} is not UTF-8" in refusal(tmp_path)
    path.write_bytes(text.encode())  # the remedy
    assert len(find_pairs(tmp_path)) == 2


def test_texts_beside_a_table_are_not_read_without_a_word(tmp_path):
    table_of(tmp_path, "file,caption\na.png,from the table\nb.png,x\n")
    (tmp_path / "readme.txt").write_text("about these images")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(str(tmp_path), "train", 8)
    (tmp_path / "a.txt").write_text("from the text")
    with pytest.warns(UserWarning, match="1 text files beside images, such as a.txt, are not read"):
        load(str(tmp_path), "train", 8)
    assert find_pairs(tmp_path)["a.png"].captions == ("from the table",)


def test_other_formats_are_not_passed_over_without_a_word(tmp_path):
    """A telephone's folder may be half of HEIC."""
    for name in ("a.png", "b.jpg"):
        add(tmp_path, name, "a cat")
    (tmp_path / "c.heic").touch()
    message = "1 files, such as c.heic, have formats that are not read: save them as PNG"
    with pytest.warns(UserWarning, match=message):
        load(str(tmp_path), "train", 8)
    with pytest.warns(UserWarning, match=message):
        kept.open_images(tmp_path / "out", tmp_path, 8, 8)
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "b.txt").unlink()
    assert "has 1 image to use; it needs at least two" in refusal(tmp_path)


def test_a_damaged_exif_is_no_reason_for_a_warning(tmp_path):
    for name in ("a.png", "b.png"):
        add(tmp_path, name, "a cat")
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    Image.new("RGB", (99, 99), "red").save(tmp_path / "c.jpg", exif=exif)
    (tmp_path / "c.txt").write_text("red")
    with warnings.catch_warnings(action="error"):
        assert len(load(str(tmp_path), "train", 8).names) == 2


def test_a_table_that_is_not_read_is_named(tmp_path):
    images = tmp_path / "sub"
    for file in ("a.png", "b.png"):
        save_image(images / file)
    table = "file,caption\na.png,x\nb.png,y\n"
    for name in ("metadata.csv", "captions.json", "Captions.TSV", "sub/captions.csv"):
        (tmp_path / name).write_text(table)
        assert f"({name} is not read: a table must be {tmp_path / 'captions.csv'})" in refusal(
            tmp_path
        )
        (tmp_path / name).unlink()
    (images / "captions.csv.txt").write_text(table)
    assert "captions.csv.txt is not read; rename it to captions.csv" in refusal(images)
    (images / "captions.csv.txt").rename(images / "captions.csv")
    assert len(find_pairs(images)) == 2


def test_two_tables_are_refused(tmp_path):
    add(tmp_path, "a.png")
    for name in ("captions.csv", "Captions.csv"):
        (tmp_path / name).write_text("file,caption\na.png,x\n")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system takes them for one")
    assert "captions.csv" in refusal(tmp_path) and "Captions.csv" in refusal(tmp_path)


def not_text(root, suffix):
    """The path of a file whose name is bytes that are no text; skips where there are none."""
    path = Path(os.fsdecode(os.fsencode(root) + b"/b\xff\xfe" + suffix.encode()))
    try:
        path.write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    return path


def test_names_that_are_no_text(tmp_path):
    root = tmp_path / "pics"
    add(root, "a.png", "a cat")
    save_image(not_text(root, ".png"))
    not_text(root, ".txt").write_text("a dog")
    images = kept.open_images(tmp_path / "out", root, 8, 8)
    again = kept.open_images(tmp_path / "out", root, 8, 8)
    assert len(images.names) == 2 and again.names == images.names
    assert sorted(images.captions) == [("a cat",), ("a dog",)]
    assert stable_hash(images.names[1]) == stable_hash(again.names[1])


def test_a_name_that_is_no_text_can_be_printed(tmp_path, capfd):
    add(tmp_path, "a.png", "a cat")
    not_text(tmp_path, ".png")
    line = ["train", "all", "--preset", "tiny", "--data", str(tmp_path)]
    assert main([*line, "--out", str(tmp_path / "out")]) == 2
    said = capfd.readouterr().err
    assert "has no caption" in said and said.count("\n") == 1


def test_names_are_the_same_where_python_takes_them_for_ascii(tmp_path):
    """A console of another encoding: names decide on the split, and the manifest has them."""
    add(tmp_path, f"{COMPOSED}.png", "a cup")
    add(tmp_path, "a.png", "a cat")
    code = "import sys; from pathlib import Path; from minimuse.datasets.captions import find_pairs"
    code += "; print(ascii(sorted(find_pairs(Path(sys.argv[1])))))"
    other = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for form in ("txt", "csv"):
        if form == "csv":
            add_table(tmp_path, f"{COMPOSED}.png,a cup", "a.png,a cat")
        names = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env=os.environ | other,
            capture_output=True,
            text=True,
        )
        assert names.stdout == f"{ascii(['a.png', COMPOSED + '.png'])}\n", names.stderr


# --- Linked folders ---
def link(path, target):
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system has no links, or they are not allowed")


def test_a_linked_folder_and_a_linked_file_are_read(tmp_path):
    add(tmp_path / "elsewhere", "a.png", "a cat")
    add(tmp_path / "far", "b.png", "a dog")
    pics = tmp_path / "pics"
    pics.mkdir()
    link(pics / "sub", tmp_path / "elsewhere")
    for suffix in ("png", "txt"):
        link(pics / f"c.{suffix}", tmp_path / "far" / f"b.{suffix}")
    assert find_pairs(pics).keys() == {"sub/a.png", "c.png"}
    link(tmp_path / "all", pics)
    assert find_pairs(tmp_path / "all").keys() == {"sub/a.png", "c.png"}


@pytest.mark.parametrize("target", [".", "..", "sub", "sub/back"])
def test_links_that_lead_in_a_circle(tmp_path, target):
    pics = tmp_path / "pics"
    add(pics, "a.png", "a cat")
    add(pics, "sub/b.png", "a dog")
    add(tmp_path, "beside.png")  # around the folder: not in it
    link(pics / "sub" / "back", pics)
    link(pics / "round", target)
    assert find_pairs(pics).keys() == {"a.png", "sub/b.png"}
    add_table(pics, "sub/back/a.png,a cat", "sub/b.png,a dog")
    assert find_pairs(pics)["a.png"].captions == ("a cat",), "a row may go round"


@pytest.mark.parametrize("name", ["b.png", "b.txt"])
def test_a_link_to_nothing_is_named(tmp_path, name):
    add(tmp_path, "a.png", "a cat")
    link(tmp_path / name, tmp_path / "gone")
    assert name in refusal(tmp_path) and "link to nothing" in refusal(tmp_path)


def test_a_link_to_itself_is_named(tmp_path):
    add(tmp_path, "a.png", "a cat")
    link(tmp_path / "b.png", tmp_path / "b.png")
    assert "b.png" in refusal(tmp_path)


# --- Files beside the images ---
def remedies(root, name, *steps):
    """Follow a message: it names the file, and after the steps the folder is read."""
    assert name in refusal(root)
    for step in steps:
        step()
    assert len(find_pairs(root)) >= 2


@pytest.fixture
def pics(tmp_path):
    for name in ("a.png", "b.png"):
        add(tmp_path, name, "a cat")
    return tmp_path


def test_a_readme_beside_the_images(pics):
    (pics / "readme.txt").write_text("About these images")
    said = refusal(pics)
    assert "readme.md" in said and "move it out" in said
    remedies(pics, "readme.txt", lambda: (pics / "readme.txt").rename(pics / "readme.md"))


@pytest.mark.parametrize("suffix", ["gif", "heic", "tiff", "bmp"])
def test_an_image_of_another_format_beside_its_text(pics, suffix):
    (pics / f"cat.{suffix}").write_bytes(b"GIF89a")
    (pics / "cat.txt").write_text("a cat")
    assert f"cat.{suffix} is no PNG, JPEG or WebP" in refusal(pics)
    remedies(pics, "cat.txt", lambda: save_image(pics / "cat.png"))


def test_an_image_of_another_format_in_a_table(pics):
    (pics / "cat.gif").write_bytes(b"GIF89a")
    add_table(pics, "a.png,x", "b.png,x", "cat.gif,x")
    assert "cat.gif' is no PNG, JPEG or WebP" in refusal(pics)


def test_only_images_of_other_formats(tmp_path):
    for i in range(3):
        (tmp_path / f"IMG_{i}.HEIC").write_bytes(b"\0")
    assert "3 files, such as IMG_0.HEIC" in refusal(tmp_path)


def test_a_text_with_both_suffixes(pics):
    (pics / "a.txt").rename(pics / "a.png.txt")
    assert "rename it to a.txt" in refusal(pics)
    remedies(pics, "a.png.txt", lambda: (pics / "a.png.txt").rename(pics / "a.txt"))


def test_what_systems_put_among_files(pics):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.png", "__MACOSX/._a.png"):
        (pics / name).parent.mkdir(exist_ok=True)
        (pics / name).write_bytes(b"\0")
    for name in ("__MACOSX/a.png", "@eaDir/a.png/thumb.jpg", ".thumbnails/a.png"):
        (pics / name).parent.mkdir(parents=True, exist_ok=True)
        (pics / name).write_bytes(b"\0")
    assert find_pairs(pics).keys() == {"a.png", "b.png"}


@pytest.mark.parametrize(
    "files", [("config.json", "base.safetensors"), ("report.json", "report.md")]
)
def test_drawn_images_of_a_model_inside_are_no_data(pics, files):
    """`--data . --out run`, and then `evaluate --out run`, or --out another folder."""
    for name in files:
        (pics / "run").mkdir(exist_ok=True)
        (pics / "run" / name).write_bytes(b"{}")
    save_image(pics / "run" / "samples.png")
    assert find_pairs(pics).keys() == {"a.png", "b.png"}


def test_a_file_in_place_of_a_folder(pics):
    assert "is a file" in refusal(pics / "a.png")


# --- Generated folders ---
# Stems differ by more than case and composition. They may be decomposed when they are written.
STEMS = ("cat", COMPOSED, "b c", "x.y", "\u732b", "\U0001f44d", "sub/dog", "sub/deep/\u00fcber")
SUFFIXES = (".png", ".PNG", ".jpg", ".JPEG", ".webp")
COLOURS = ("red", "blue", "white")
BAD = ("damaged", "small", "gif", "empty")
EXTRAS = (
    ".DS_Store",
    "Thumbs.db",
    "__MACOSX/cat.png",
    "notes.md",
    "readme.txt",
    "other.gif",
    "loop",
    "broken.png",
    "run/samples.png",
)


@dataclass(frozen=True)
class Picture:
    """One image of a folder, and how it is written."""

    stem: str
    suffix: str
    colour: str
    content: str  # "good", or one of BAD
    caption: str  # "" is an empty one, "missing" none
    decomposed: tuple[bool, bool]  # the names of the image, and of the image in its caption
    spelling: str  # how a row of a table spells the name

    @property
    def name(self) -> str:
        return self.stem + self.suffix


@dataclass(frozen=True)
class Case:
    """A folder, and how it is read."""

    pictures: tuple[Picture, ...]
    form: str  # "txt" or "csv"
    extras: frozenset[str]
    skip: bool


pictures = st.builds(
    Picture,
    stem=st.sampled_from(STEMS),
    suffix=st.sampled_from(SUFFIXES),
    colour=st.sampled_from(COLOURS),
    content=st.sampled_from(("good",) * 12 + BAD),
    caption=st.sampled_from(("a cat", "a  dog", " x ") * 4 + ("", "missing")),
    decomposed=st.tuples(st.booleans(), st.booleans()),
    spelling=st.sampled_from(("plain", "backslash", "dot", "upper", "space")),
)
cases = st.builds(
    Case,
    pictures=st.lists(pictures, min_size=1, max_size=6, unique_by=lambda p: p.stem).map(tuple),
    form=st.sampled_from(("txt", "csv")),
    extras=st.frozensets(st.sampled_from(EXTRAS), max_size=2),
    skip=st.booleans(),
)
# What happens to a folder before it is read again.
changes = st.sampled_from(
    ("none", "form", "extras", "names", "colour", "caption", "fewer", "more", "damage", "all")
)


def form_of(text, decomposed):
    return unicodedata.normalize("NFD" if decomposed else "NFC", text)


def write(case, root):
    """Make the folder."""
    root.mkdir()
    rows = ["file,caption"]
    for picture in case.pictures:
        path = root / form_of(picture.name, picture.decomposed[0])
        write_image(picture, path)
        if picture.caption == "missing":
            continue
        if case.form == "txt":
            stem = form_of(picture.stem, picture.decomposed[1])
            (root / f"{stem}.txt").parent.mkdir(parents=True, exist_ok=True)
            (root / f"{stem}.txt").write_text(picture.caption + "\n")
        else:
            rows.append(f'"{spelled(picture)}","{picture.caption}"')
    if case.form == "csv":
        (root / "captions.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    for extra in case.extras:
        write_extra(root, extra)


def write_image(picture, path):
    save_image(path, picture.colour, (4, 4) if picture.content == "small" else (32, 32))
    if picture.content == "damaged":
        path.write_bytes(path.read_bytes()[:30])
    elif picture.content == "empty":
        path.write_bytes(b"")
    elif picture.content == "gif":
        Image.new("RGB", (32, 32)).save(path, "GIF")


def spelled(picture):
    name = form_of(picture.name, picture.decomposed[1])
    return {
        "plain": name,
        "backslash": name.replace("/", "\\"),
        "dot": f"./{name}",
        "upper": name.upper(),
        "space": f" {name}",
    }[picture.spelling]


def write_extra(root, extra):
    path = root / extra
    path.parent.mkdir(exist_ok=True)
    if extra == "loop":
        path.symlink_to(root)
    elif extra == "broken.png":
        path.symlink_to(root / "nothing")
    else:
        path.write_bytes(b"x")
    if extra == "other.gif":
        (root / "other.txt").write_text("x")
    if extra.startswith("run/"):
        (root / "run" / "config.json").write_text("{}")
        (root / "run" / "base.safetensors").write_text("x")


class Expected:
    """What must be said of a folder, from its description alone."""

    def __init__(self, case):
        self.left_out = {p.name for p in case.pictures if p.content != "good"}
        self.images = {}
        self.wrong = []  # what a refusal has to mention: one of these
        for picture in case.pictures:
            self.expect_image(picture, case.skip)
        if "broken.png" in case.extras:
            self.wrong.append("broken.png")
        if case.form == "txt":
            self.wrong += [e for e in ("readme.txt", "other.gif") if e in case.extras]
        if len(self.images) < 2:
            self.wrong.append("needs at least two")
        if all(picture.caption == "missing" for picture in case.pictures):
            self.wrong.append("captions.csv is empty")

    def expect_image(self, picture, skip):
        if picture.caption in ("", "missing"):
            self.wrong.append(picture.stem)
        if picture.content == "good":
            words = " ".join(picture.caption.split())
            self.images[picture.name] = (picture.colour, words)
        elif not skip:
            self.wrong.append(picture.stem)

    def changed_since(self, before):
        """The names that a model which was begun with `before` has to name."""
        left_out = self.left_out | before.left_out
        names = (self.images.keys() | before.images.keys()) - left_out
        return {name for name in names if self.images.get(name) != before.images.get(name)}


def changed(case, kind, other):
    """The case after something has happened to it. `other` is a case to take things from."""
    first, *rest = case.pictures
    if kind == "form":
        return dataclasses.replace(case, form="csv" if case.form == "txt" else "txt")
    if kind == "extras":
        return dataclasses.replace(case, extras=other.extras)
    to_first = {
        "names": {"decomposed": (True, False), "spelling": "backslash"},
        "colour": {"colour": COLOURS[(COLOURS.index(first.colour) + 1) % 3]},
        "caption": {"caption": "another caption"},
        "damage": {"content": "damaged"},
    }
    first = dataclasses.replace(first, **to_first.get(kind, {}))
    if kind == "fewer":
        return dataclasses.replace(case, pictures=tuple(rest) or (first,))
    if kind == "more":
        known = {picture.stem for picture in case.pictures}
        rest += [picture for picture in other.pictures if picture.stem not in known]
    if kind == "all":
        return other
    return dataclasses.replace(case, pictures=(first, *rest))


def verdict(root, out, case):
    """The images that are read, or the message that refuses them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kept.open_images(out, root, 8, 8, skip=case.skip), ""
    except (ValueError, FileNotFoundError) as error:
        return None, unicodedata.normalize("NFC", str(error))


def check_verdict(case, expected, images, message, changed=frozenset()):
    """A folder is refused exactly if it must be, and the message names a reason."""
    reasons = [*expected.wrong, *changed]
    if not reasons:
        assert message == ""
        assert dict(zip(images.names, images.captions, strict=True)) == {
            name: (caption,) for name, (_, caption) in expected.images.items()
        }
        return
    assert images is None, f"it must be refused for {reasons}"
    assert "\n" not in message and any(reason in message for reason in reasons), message


def check_folder(case, kind, other):
    """Read a generated folder, begin a model with it, and go on with what has become of it."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        before = Expected(case)
        write(case, Path(temporary) / "first")
        images, message = verdict(Path(temporary) / "first", out, case)
        check_verdict(case, before, images, message)
        if images is None:
            assert not out.exists(), "nothing is left of what is refused"
            return
        (out / "config.json").write_text("{}")
        later = changed(case, kind, other)
        now = Expected(later)
        write(later, Path(temporary) / "second")
        images, message = verdict(Path(temporary) / "second", out, later)
        check_verdict(later, now, images, message, now.changed_since(before))


@given(cases, changes, cases)
def test_generated_folders(case, kind, other):
    check_folder(case, kind, other)


@pytest.mark.slow
@settings(max_examples=500, suppress_health_check=list(HealthCheck))
@given(cases, changes, cases)
def test_500_generated_folders(case, kind, other):
    check_folder(case, kind, other)
