"""What one can watch while a stage trains: OUT/log.jsonl, and sheets of pictures in OUT/watch.

    OUT/watch/tokenizer-000275.png    real held-out pictures, and their reconstructions
    OUT/watch/base-000288.png         what the base model draws for held-out captions

`minimuse curves OUT` draws the log. The training loop calls a `Watcher` with each record. At eight
of them it also looks at held-out images (see `heldout.py`). All of it takes less than 2 % of the
time of each stage of the demo.
"""

from pathlib import Path

from torch import nn

from minimuse.data import Images, halve
from minimuse.plumbing import collectives
from minimuse.plumbing.config import Config
from minimuse.plumbing.files import save_image
from minimuse.plumbing.parts import TOKEN_PARTS
from minimuse.runs import cache
from minimuse.runs.directory import sheet_path
from minimuse.runs.heldout import PICTURES, HeldoutImages, HeldoutTokens, Look
from minimuse.runs.log import TrainingLog, is_moment
from minimuse.runs.sheet import sheet
from minimuse.t5_frozen import FrozenT5
from minimuse.train import Record

# Looks at held-out images in a stage, evenly spaced. `log.LINES` is a multiple, so that each look
# has a line of the log.
LOOKS = 8
# What the rows of a sheet show.
TITLES = {
    "tokenizer": ("real", "tokenizer"),
    "tokenizer_hi": ("real", "tokenizer"),
    "base": ("real", "base"),
    "superres": ("real", "super-res"),
    "decoder": ("real", "decoder"),
}


def watcher_of(
    name: str,
    out: Path,
    part: nn.Module,
    frozen: dict[str, nn.Module],
    text: FrozenT5,
    images: Images | None,
    config: Config,
    device: str,
) -> "Watcher":
    """What watches the training of a part.

    frozen: the finished parts that the stage needs. images: held-out ones, None if there are none
    at hand. With a cache their tokens come from there, so that the text encoder is not loaded.
    """
    heldout = None
    if images is not None and name not in TOKEN_PARTS:
        tokenizer = frozen.get("tokenizer_hi")
        heldout = HeldoutImages(part, tokenizer, images, config, name, device)
    elif images is not None:
        if cache.index_path(out).is_file():
            tokens = cache.read_heldout(out)
        else:
            tokens = cache.tokens_of(frozen, text, images, device)
        if tokens is not None:
            tokenizer = frozen["tokenizer" if name == "base" else "tokenizer_hi"]
            heldout = HeldoutTokens(part, tokens, tokenizer, config, name, device)
    return Watcher(out, name, images, heldout)


class Watcher:
    """Writes the log and the sheets of one stage.

    images: held-out ones, with `heldout` made of them; None if there are none at hand.
    """

    def __init__(
        self,
        out: Path,
        stage: str,
        images: Images | None,
        heldout: HeldoutTokens | HeldoutImages | None,
    ):
        self.out = out
        self.stage = stage
        self.images = images
        self.heldout = heldout
        self.log = TrainingLog(out, stage)
        self.has_begun = False
        rank, _ = collectives.rank_and_size()
        self.writes = rank == 0

    def __call__(self, record: Record) -> None:
        """Write what is due after this step. Collective: every rank must call this."""
        if not self.has_begun:
            self.begin(record.step)
        if not self.log.is_due(record):
            return
        look = None
        looks = self.heldout is not None and is_moment(record.step, record.steps, LOOKS)
        if looks and isinstance(self.heldout, HeldoutTokens):
            look = self.heldout.look(record.step)  # by all processes together
        with collectives.fail_together():
            if self.writes:
                if looks and look is None:
                    look = self.heldout.look(record.step)
                self.write(record, look)

    def write(self, record: Record, look: Look | None) -> None:
        """Write a line of the log, and a sheet if there is something to look at."""
        metrics = dict(record.metrics)
        if look is not None:
            metrics["heldout_loss"] = look.loss
        self.log.write(record, metrics)
        if look is not None:
            self.write_sheet(record.step, look)

    def begin(self, step: int) -> None:
        """Begin with this step; remove the sheets that this run will draw again."""
        self.has_begun = True
        with collectives.fail_together():
            if self.writes:
                self.log.begin(step)
                for path in sheet_path(self.out, self.stage, step).parent.glob("*.png"):
                    stage, _, number = path.stem.rpartition("-")
                    if stage == self.stage and number.isdecimal() and int(number) >= step:
                        path.unlink(missing_ok=True)

    def write_sheet(self, step: int, look: Look) -> None:
        """Write real pictures above those that the model makes of them or of their captions."""
        real = self.images.batch(range(len(look.drawn)))  # P 3 H W
        if self.stage in ("tokenizer", "base"):
            real = halve(real)
        captions = [captions[0] for captions in self.images.captions[:PICTURES]]
        page = sheet([real, look.drawn], captions, titles=TITLES[self.stage])
        save_image(page, sheet_path(self.out, self.stage, step))

    def close(self) -> None:
        """Close what is open."""
        self.log.close()
