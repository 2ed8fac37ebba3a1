"""The loss of each training stage.

    token_loss       base and super-resolution model: cross-entropy of hidden tokens (section 2.3)
    tokenizer_loss   both tokenizers: a VQGAN's loss (section 2.2)
    decoder_loss     the finetuned decoder: the same loss of its images (section 2.5)

Sections are those of Muse (2301.00704). Each function returns a `loss_of`, which the training loop
calls once per step:

    for loss, metrics in loss_of(indices, generator, step):
        loss.backward()

indices (B,) are the images of the batch; all random numbers come from the generator; `step` counts
from 0. A large batch may be cut into micro-batches, whose losses and metrics add up to its own.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn

from minimuse.data import Images, Tokens, halve, pad_texts
from minimuse.maskgit import drop_captions, hide, masked_token_loss
from minimuse.plumbing.collectives import own_rows, rows_of_all, share
from minimuse.plumbing.config import Config, Stage
from minimuse.plumbing.device import autocast
from minimuse.plumbing.precision import full_precision
from minimuse.vq import ImageTokenizer, perplexity

Losses = Iterator[tuple[torch.Tensor, dict[str, torch.Tensor | float]]]
LossOf = Callable[[torch.Tensor, torch.Generator, int], Losses]


class TokenBatch(NamedTuple):
    """A batch of token ids, masked. Ids are on the model's device; texts are on the CPU.

    N is the number of tokens that train: of super-resolution, those that are sampled.
    """

    ids: torch.Tensor  # (B, N) true ids
    masked_ids: torch.Tensor  # (B, N) with the mask id at hidden positions
    hidden: torch.Tensor  # (B, N) bool
    texts: list[torch.Tensor]  # B text embeddings (T, E), of different lengths
    has_caption: torch.Tensor  # (B, 1) bool, False where the caption is dropped
    # Of super-resolution alone: all low-res ids (B, n), and the token numbers (B, N) of `ids`.
    low_ids: torch.Tensor | None = None
    places: torch.Tensor | None = None


def token_loss(
    model: nn.Module, tokens: Tokens, config: Config, resolution: str, device: str
) -> LossOf:
    """The masked-token loss: of the base model ("low") or of the super-resolution model ("high").

    `loss_of` yields one (loss, metrics) for each micro-batch of this process. Metrics: `accuracy`,
    the fraction of hidden tokens whose likeliest code is right, and `chance`, the loss of a guess.
    """

    def loss_of(indices: torch.Tensor, generator: torch.Generator, step: int) -> Losses:
        batch = draw_token_batch(model, tokens, indices, generator, config, resolution, device)
        for rows in micro_batches(len(indices), config.scale.micro_batch):
            ids, hidden = batch.ids[rows], batch.hidden[rows]
            logits = hidden_logits(model, batch, rows, device)  # M K
            loss, correct = masked_token_loss(logits, ids, hidden)
            # The loss is the mean over all hidden tokens of the batch, so these rows count by
            # their fraction of them.
            fraction = hidden.sum() / batch.hidden.sum()
            chance = math.log(logits.shape[-1])  # the loss of a uniform guess among K codes
            yield fraction * loss, {"accuracy": fraction * correct, "chance": fraction * chance}

    return loss_of


def hidden_logits(
    model: nn.Module, batch: TokenBatch, rows: torch.Tensor, device: str
) -> torch.Tensor:
    """The logits (M, K) of all M hidden tokens in some rows of a batch."""
    texts, visible = pad_texts([batch.texts[i] for i in rows.tolist()])  # B T E, B T
    visible = visible & batch.has_caption[rows]
    inputs = [texts.to(device), visible.to(device)]
    if batch.low_ids is not None:
        inputs += [batch.low_ids[rows], batch.places[rows]]
    with autocast(device):
        context = model.context(*inputs)
        return model(batch.masked_ids[rows], context, batch.hidden[rows])


def draw_token_batch(
    model: nn.Module,
    tokens: Tokens,
    indices: torch.Tensor,
    generator: torch.Generator,
    config: Config,
    resolution: str,
    device: str,
) -> TokenBatch:
    """Look up the tokens and captions of a batch, and draw everything random about it.

    Every process draws for the whole batch. So the loss does not depend on how many processes and
    micro-batches share the work.
    """
    ids = tokens.ids(resolution, indices).to(device)  # B N
    low_ids, places, fully_hidden = None, None, 0.0
    if resolution == "high":
        # Super-resolution trains on some places of each image, but sees all of its low-res tokens.
        low_ids = tokens.ids("low", indices).to(device)
        places = model.sample_places(ids, generator)
        ids = ids.gather(1, places)  # B N, of the sampled tokens alone
        fully_hidden = config.fully_hidden
    texts = tokens.choose_captions(indices, generator)
    one_column = torch.ones(len(indices), 1, dtype=torch.bool)  # a text mask
    has_caption = drop_captions(one_column, config.caption_dropout, generator)
    masked_ids, hidden = hide(ids, model.mask_id, generator, fully_hidden=fully_hidden)
    return TokenBatch(ids, masked_ids, hidden, texts, has_caption, low_ids, places)


def micro_batches(B: int, micro_batch: int) -> tuple[torch.Tensor, ...]:
    """The rows of a batch that this process computes, cut into micro-batches.

    Each process takes a contiguous part of the batch. micro_batch 0: compute that in one pass.
    """
    rows = own_rows(torch.arange(B))
    return rows.split(micro_batch or B)


def tokenizer_loss(
    model: nn.ModuleDict,
    images: Images,
    config: Config,
    settings: Stage,
    low: bool,
    device: str,
) -> LossOf:
    """The loss of a VQGAN: the loss of its images, and the commitment of latents to their codes.

    model: {"part": the tokenizer, "loss": the loss of its images (`vq_loss.py`)}.
    low: train the low-res tokenizer, on whole images at half the size. Otherwise the high-res one,
        on crops as large as those: it is fully convolutional, so a crop is enough.
    `loss_of` yields once, and moves the codebook. Metrics are those of the images, and the
    perplexity of the codes.

    In the first steps, a fraction `loss.quantize_from`, it is an autoencoder without codes. Then
    k-means places the codes. With codes at random places, the encoder would learn to use those few
    that it can tell apart.
    """
    tokenizer = model["part"]
    image_loss = model["loss"]
    first_quantized = first_step_with_codes(tokenizer, config, settings)
    first_adversarial = config.loss.adversarial_from * settings.steps

    def batch_of(indices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        batch = images.batch(indices).to(device)  # B 3 H W
        if low:
            return halve(batch)
        return crop(batch, config.tokenizer.side, generator)

    def loss_of(indices: torch.Tensor, generator: torch.Generator, step: int) -> Losses:
        real = batch_of(own_rows(indices), generator)
        last_layer = tokenizer.decoder[-1].weight
        if step < first_quantized:
            with autocast(device):
                fake = tokenizer.autoencode(real)
                loss, metrics = image_loss(fake, real, last_layer, adversarial=False)
            yield share(loss, metrics)
            return

        if step == first_quantized:
            # A batch is too small to place the codes: it may lack whole colours.
            sample = torch.randint(len(images), (256,), generator=generator)
            batches = (batch_of(part, generator) for part in sample.split(32))
            place_codes(tokenizer, batches, generator, device)
        with autocast(device):
            fake, latents, ids, commitment = tokenizer(real)
            adversarial = step >= first_adversarial
            loss, metrics = image_loss(fake, real, last_layer, adversarial)
        # There is one codebook, so every process moves it to the latents of the whole batch.
        latents, ids = rows_of_all(latents.detach()), rows_of_all(ids)
        tokenizer.quantizer.update(latents, ids, generator)
        loss = loss + config.loss.commitment * commitment
        metrics["perplexity"] = perplexity(ids, tokenizer.config.codes)[0]
        yield share(loss, metrics)

    return loss_of


def first_step_with_codes(tokenizer: ImageTokenizer, config: Config, settings: Stage) -> int:
    """The first step, counted from 0, in which a tokenizer uses its codes."""
    if tokenizer.config.quantizer == "fsq":
        return 0  # There are no codes to place, and only the quantizer bounds the latents.
    return round(config.loss.quantize_from * settings.steps)


@torch.no_grad()
def place_codes(
    tokenizer: ImageTokenizer,
    batches: Iterator[torch.Tensor],
    generator: torch.Generator,
    device: str,
) -> None:
    """Start the codebook by k-means over the latents of some images, batches of (B, 3, H, W)."""
    with full_precision(device):
        latents = torch.cat([tokenizer.latents(batch) for batch in batches])
        tokenizer.quantizer.start(latents, generator)


def decoder_loss(
    model: nn.ModuleDict,
    frozen: ImageTokenizer,
    images: Images,
    config: Config,
    settings: Stage,
    device: str,
) -> LossOf:
    """The loss of the finetuned decoder: that of its images from the codes of a frozen encoder.

    model: {"part": the decoder, "loss": the loss of its images (`vq_loss.py`)}.
    frozen: the high-res tokenizer, whose encoder and codebook stay as they are.
    `loss_of` yields once, for crops as large as those of the tokenizer's training.
    """
    decoder = model["part"]
    image_loss = model["loss"]
    first_adversarial = config.loss.adversarial_from * settings.steps

    def loss_of(indices: torch.Tensor, generator: torch.Generator, step: int) -> Losses:
        batch = images.batch(own_rows(indices)).to(device)  # B 3 H W
        real = crop(batch, config.tokenizer.side, generator)
        with autocast(device):
            vectors = frozen.quantizer.lookup(frozen.encode(real))  # B h w C
            fake = decoder(rearrange(vectors, "B h w C -> B C h w"))
            adversarial = step >= first_adversarial
            loss, metrics = image_loss(fake, real, decoder[-1].weight, adversarial)
        yield share(loss, metrics)

    return loss_of


def crop(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, side, side), at a random place, the same for all images."""
    H, W = images.shape[-2:]
    y = int(torch.randint(H - side + 1, (), generator=generator))
    x = int(torch.randint(W - side + 1, (), generator=generator))
    return images[..., y : y + side, x : x + side]
