"""The overture, `lessons/overture.py`: its pieces, a run of a few steps, and its page.

pytest tests/test_overture.py            # half a minute
pytest -m slow tests/test_overture.py    # the training as the page has it: 90 s, two cores
"""

import ast
import importlib.util
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "lessons/overture.py"
PAGE = ROOT / "lessons/overture.md"

# What the real run must reach, on 64 held-out captions.
THRESHOLDS = {"background": 0.95, "colour": 0.80, "relation": 0.50}


def load_script():
    spec = importlib.util.spec_from_file_location("overture", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


overture = load_script()
N, K, MASK = overture.N, overture.K, overture.MASK


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run_script(*flags, timeout):
    command = [sys.executable, str(SCRIPT), *map(str, flags)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=timeout
    ).stdout


def fractions_of(printed):
    return {part: float(value) for part, value in re.findall(r"(\w+) +right in ([\d.]+)", printed)}


# --- The file ---
def test_the_file_is_short_and_imports_only_the_scenes_and_their_detector_of_ours():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 250
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in imported if name.startswith("minimuse")}
    assert ours == {"minimuse.datasets.shapes", "minimuse.datasets.detector"}
    tops = {name.split(".")[0] for name in imported - ours}
    assert tops - sys.stdlib_module_names <= {"torch", "numpy", "einops", "PIL"}


def pieces_of(fence):
    """The top-level definitions and the methods that a fence of the page quotes."""
    return [part for part in re.split(r"\n\n\n", fence.strip("\n")) if part]


def test_the_code_on_the_page_is_that_of_the_file():
    text = SCRIPT.read_text()
    fences = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.S | re.M)
    assert len(fences) >= 5
    for fence in fences:
        for piece in pieces_of(fence):
            # Whole lines: a piece that ends within a line is not the file's.
            assert f"\n{piece}\n" in text, f"not in lessons/overture.py:\n{piece}"


def test_the_page_has_600_to_1200_words_and_its_sheet():
    page = PAGE.read_text()
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    assert 600 <= len(prose.split()) <= 1200, f"{len(prose.split())} words beside the code"
    assert "(figures/overture.png)" in page and (ROOT / "lessons/figures/overture.png").is_file()
    for part in ("*Time:", "**What you will do.**", "**What you will learn.**"):
        assert part in page, f"no {part}"


# --- Tokens ---
def test_patches_are_squares_of_the_image_row_by_row_and_come_together_again():
    images = torch.rand(2, 3, overture.SIDE, overture.SIDE, generator=generator())
    patches = overture.to_patches(images)
    p, side = overture.PATCH, overture.GRID
    assert patches.shape == (2, N, 3 * p * p)
    for n in (0, 1, side, N - 1):
        row, column = n // side * p, n % side * p
        square = images[1, :, row : row + p, column : column + p]
        assert torch.equal(patches[1, n], square.flatten())
    assert torch.equal(overture.to_images(patches), images)


def test_nearest_is_the_nearest_of_all_codes():
    patches = torch.randn(50, 12, generator=generator(1))
    codes = torch.randn(20, 12, generator=generator(2)) * 2
    distances = (patches.double()[:, None] - codes.double()[None]).norm(dim=-1)
    assert torch.equal(overture.nearest(patches, codes), distances.argmin(-1))


def test_k_means_brings_the_codes_nearer_and_leaves_each_at_the_mean_of_its_patches():
    centres = torch.randn(K, 6, generator=generator(3)) * 5
    noise = 0.01 * torch.randn(4 * K, 6, generator=generator(4))
    patches = centres.repeat(4, 1) + noise

    def distance(codes):
        return (patches - codes[overture.nearest(patches, codes)]).norm(dim=-1).mean()

    start = overture.k_means(patches, generator(5), rounds=0)
    codes = overture.k_means(patches, generator(5), rounds=12)
    assert codes.shape == (K, 6) and codes.isfinite().all()
    assert distance(codes) < distance(start)
    again = overture.nearest(patches, codes)
    settled = torch.equal(codes, overture.k_means(patches, generator(5), rounds=13))
    assert settled, "twelve rounds should settle these clusters"
    for k in again.unique()[:20]:
        assert torch.allclose(codes[k], patches[again == k].mean(0), atol=1e-4)


def test_captions_become_words_and_every_word_is_known():
    captions, images = overture.draw_scenes(range(40), "heldout")
    words = overture.encode(captions)
    assert images.shape == (40, 3, overture.SIDE, overture.SIDE)
    assert images.min() >= -1 and images.max() <= 1
    for caption, row in zip(captions, words.tolist(), strict=True):
        assert " ".join(overture.VOCABULARY[word] for word in row if word) == caption


# --- Loss ---
def test_masks_have_the_counts_of_the_cosine_law():
    hidden = overture.hide(torch.zeros(20_000, N), generator())
    counts = hidden.sum(-1)
    assert counts.min() >= 1 and counts.max() == N
    # The ratio r = cos(pi u / 2) has F(r) = (2 / pi) arcsin(r); a count c is ceil(N r).
    for c in (N // 4, N // 2, 3 * N // 4):
        expected = 2 / math.pi * math.asin(c / N)
        assert abs((counts <= c).float().mean() - expected) < 5 * 0.5 / 20_000**0.5
    # Every place is hidden equally often, and rows differ.
    share = hidden.float().mean(0)
    assert (share - share.mean()).abs().max() < 5 * 0.5 / 20_000**0.5
    half = hidden[counts == N // 2]
    assert len(half[:50].unique(dim=0)) > 45


def test_a_tenth_of_the_captions_is_dropped_whole():
    words = torch.ones(20_000, overture.T, dtype=torch.long)
    kept = overture.drop_captions(words, generator())
    per_row = kept.sum(-1)
    assert set(per_row.tolist()) == {0, overture.T}
    assert abs((per_row == 0).float().mean() - 0.1) < 5 * (0.09 / 20_000) ** 0.5


def new_model():
    codes = torch.randn(K, 3 * overture.PATCH**2, generator=generator(9))
    return overture.Model(codes, generator())


class Spy(torch.nn.Module):
    """A model without weights that notes what it was given and guesses everything equally."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, ids, words):
        self.calls.append((ids.clone(), words.clone()))
        return torch.zeros(*ids.shape, K)


def test_the_loss_hides_tokens_drops_captions_and_asks_for_hidden_tokens_only():
    ids = torch.randint(K, (500, N), generator=generator(1))
    words = torch.ones(500, overture.T, dtype=torch.long)

    class Copies(Spy):
        """It is right about visible tokens, and wrong about hidden ones."""

        def forward(self, given, words):
            super().forward(given, words)
            visible = torch.where(given == MASK, (ids + 1) % K, given)
            return 100.0 * torch.nn.functional.one_hot(visible, K)

    model = Copies()
    loss = overture.masked_loss(model, ids, words, generator(2))
    given, captions = model.calls[0]
    hidden = given == MASK
    assert hidden.any(-1).all() and torch.equal(given[~hidden], ids[~hidden])
    assert 20 < (captions.sum(-1) == 0).sum() < 80
    assert loss.item() == pytest.approx(100), "visible tokens must not count"


def test_the_model_sees_the_caption_and_its_order():
    model = new_model()
    ids = torch.full((4, N), MASK)
    words = overture.encode(["a small red ring", "a large red ring", "red a small ring", ""])
    logits = model(ids, words)
    assert logits.shape == (4, N, K)
    assert len(logits.flatten(1).unique(dim=0)) == 4, "words or their order change nothing"
    dropped = torch.zeros_like(words)
    for row in model(ids, dropped):
        assert torch.allclose(row, logits[3], atol=1e-5), "a dropped caption is not an empty one"


def test_the_model_sees_which_tokens_are_where():
    ids = torch.randint(K, (1, N), generator=generator(1))
    words = overture.encode(["a small red ring"])
    model = new_model()
    logits = model(ids, words)
    assert not torch.allclose(model(ids.flip(1), words).flip(1), logits, atol=1e-3)
    other = ids.clone()
    other[0, 0] = MASK
    changed = (model(other, words) - logits).abs().amax(-1)[0]
    assert (changed > 1e-6).all(), "a token does not see another one"


def test_each_head_starts_at_another_neighbour():
    side = overture.GRID
    near = overture.neighbours()
    assert near.shape == (8, N, N) and overture.HEADS == 8
    steps = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    for i in range(N):
        row, column = divmod(i, side)
        for head, (down, right) in enumerate(steps):
            y, x = row + down, column + right
            expected = torch.zeros(N)
            if 0 <= y < side and 0 <= x < side:
                expected[y * side + x] = 1
            assert torch.equal(near[head, i], expected)


def test_attention_is_a_weighted_mean_with_a_bias():
    q, k, v = torch.randn(3, 2, 4, 5, 6, generator=generator(3), dtype=torch.float64)
    bias = torch.randn(4, 5, 5, generator=generator(4), dtype=torch.float64)
    attended = overture.attend(q, k, v, bias)
    for b, head, n in itertools.product(range(2), range(4), range(5)):
        weights = []
        for m in range(5):
            score = float(q[b, head, n] @ k[b, head, m]) / math.sqrt(6) + float(bias[head, n, m])
            weights.append(math.exp(score))
        mean = sum(w * v[b, head, m] for m, w in enumerate(weights)) / sum(weights)
        assert torch.allclose(attended[b, head, n], mean)


def test_codes_that_look_alike_start_with_like_embeddings():
    codes = torch.randn(K, 108, generator=generator(2))
    codes[1] = codes[0] + 0.01
    token = overture.Model(codes, generator()).token.weight
    assert (token[0] - token[1]).norm() < 0.1 * (token[0] - token[2]).norm()


# --- Decoding ---
def test_guidance_of_0_is_neutral_and_more_goes_on_in_the_same_direction():
    cond, uncond = torch.randn(2, 5, generator=generator())
    assert torch.equal(overture.guide(cond, uncond, 0.0), cond)
    difference = overture.guide(cond, uncond, 2.0) - cond
    assert torch.allclose(difference, 2 * (cond - uncond), atol=1e-5)


@pytest.mark.parametrize("passes", [1, 2, 7, 12, N])
def test_decoding_reveals_every_token_once_and_no_mask(passes):
    model = Spy()
    words = torch.ones(3, overture.T, dtype=torch.long)
    ids = overture.decode(model, words, generator(), passes)
    states = [given for given, _ in model.calls[::2]] + [ids]
    assert len(states) == passes + 1
    assert (states[0] == MASK).all()
    for before, after in zip(states, states[1:], strict=False):
        revealed = before != MASK
        assert torch.equal(after[revealed], before[revealed]), "a revealed token changed"
        counts = (after == MASK).sum(-1)
        assert len(counts.unique()) == 1, "rows differ in how much is hidden"
        assert counts[0] < (before == MASK).sum(-1)[0], "a pass revealed nothing"
    assert ids.min() >= 0 and ids.max() < K
    assert torch.equal(ids, overture.decode(Spy(), words, generator(), passes))


def test_the_counts_of_decoding_follow_the_cosine_law():
    model = Spy()
    overture.decode(model, torch.ones(1, overture.T, dtype=torch.long), generator(), 12)
    counts = [int((given == MASK).sum()) for given, _ in model.calls[::2]]
    assert counts[0] == N
    for step, count in enumerate(counts[1:]):
        law = math.floor(N * math.cos(math.pi / 2 * (step + 1) / 12))
        assert count == min(law, N - step - 1)


def test_the_surest_guesses_stay_when_there_is_no_noise(monkeypatch):
    monkeypatch.setattr(overture, "CHOICE", 0.0)

    class Sure(Spy):
        """It has N codes in mind for the first token, N - 1 for the second, and so on."""

        def forward(self, ids, words):
            super().forward(ids, words)
            logits = torch.full((*ids.shape, K), -1e4)
            for n in range(N):
                logits[:, n, : N - n] = 0
            return logits

    model = Sure()
    overture.decode(model, torch.ones(1, overture.T, dtype=torch.long), generator(), 4)
    for given, _ in model.calls[::2]:
        hidden = given[0] == MASK
        assert torch.equal(hidden, torch.arange(N) < hidden.sum())


def test_decoding_asks_with_and_without_the_caption():
    model = Spy()
    words = torch.ones(2, overture.T, dtype=torch.long)
    overture.decode(model, words, generator())
    sums = [int(asked.sum()) for _, asked in model.calls]
    assert sums == [2 * overture.T, 0] * overture.PASSES


def test_a_guess_is_one_of_the_codes_that_are_likely_with_the_caption():
    likely = torch.arange(overture.TOP) * 3

    class Prefers(Spy):
        """Guidance alone would lead it to other codes, which are a little likelier without it."""

        def forward(self, ids, words):
            super().forward(ids, words)
            logits = torch.zeros(*ids.shape, K)
            if words.any():
                logits[..., likely] = 0.5
            else:
                logits[..., 1] = -100
            return logits

    words = torch.ones(4, overture.T, dtype=torch.long)
    ids = overture.decode(Prefers(), words, generator())
    assert set(ids.unique().tolist()) <= set(likely.tolist())


# --- All of it ---
def test_a_few_steps_of_training_lower_the_loss():
    captions, images = overture.draw_scenes(range(0, 1000, 2), "train")
    patches = overture.to_patches(images)
    codes = overture.k_means(patches.flatten(0, 1).unique(dim=0), generator())
    ids, words = overture.nearest(patches, codes), overture.encode(captions)
    model = overture.Model(codes, generator())
    before = overture.masked_loss(model, ids, words, generator(7)).item()
    overture.train(model, ids, words, 12, generator())
    assert overture.masked_loss(model, ids, words, generator(7)).item() < before - 0.5


def test_the_script_writes_a_sheet(tmp_path):
    sheet = tmp_path / "sheet.png"
    printed = run_script("--steps", 2, "--out", sheet, timeout=300)
    assert set(fractions_of(printed)) == {*THRESHOLDS, "count", "shape"}
    image = Image.open(sheet)
    assert image.mode == "RGB" and min(image.size) > 500


@pytest.mark.slow
def test_the_whole_training_draws_what_held_out_captions_say(tmp_path):
    printed = run_script("--out", tmp_path / "sheet.png", timeout=1200)
    print(printed)
    fractions = fractions_of(printed)
    for part, least in THRESHOLDS.items():
        assert fractions[part] >= least, f"{part} is right in {fractions[part]}, not {least}"
