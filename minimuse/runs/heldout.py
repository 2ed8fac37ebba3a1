"""How a stage does on held-out images while it trains: a loss, and pictures to look at.

    heldout = HeldoutTokens(model, tokens, tokenizer, config, "base", device)
    loss, drawn = heldout.look(step)

A loss of images that are never trained on shows when a model begins to learn its training images by
heart: it rises while the training loss goes on to fall. Masks, captions and noise are the same at
every look, so what changes is the model alone. Nothing here touches the model, or the random
numbers of the training. Under torchrun every process computes all of `HeldoutTokens`, because the
passes of a model that is spread over processes are collective. Only the first process computes
`HeldoutImages`.
Letters: M held-out images, P of them drawn, N image tokens.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn

from minimuse import schedule
from minimuse.beyond.mean_vectors import vectors_of
from minimuse.data import Images, Tokens, halve
from minimuse.decode import MAY_BE_AHEAD, Sampling, decode
from minimuse.losses import TokenBatch, draw_token_batch, first_step_with_codes, hidden_logits
from minimuse.maskgit import masked_token_loss
from minimuse.plumbing import collectives
from minimuse.plumbing.config import Config, Stage
from minimuse.plumbing.device import autocast, generator_at
from minimuse.vq import ImageTokenizer
from minimuse.vq_loss import pixel_loss

PICTURES = 8  # P

# One held-out image for so many training images of the stage. All looks then cost about 1 % of it.
IMAGES_FOR_EACH = 500

PLACES = 5  # of crops, in each direction


class Look(NamedTuple):
    """How a stage does at one moment."""

    loss: float
    drawn: torch.Tensor  # (P, 3, H, W) in [-1, 1], what it makes of the first P held-out images


def count_for(settings: Stage, available: int, crops: int = 1) -> int:
    """How many held-out images a stage looks at: M, few if the stage is short.

    crops: how many crops, as training sees them, cover one whole image.
    """
    affordable = settings.steps * settings.batch // (IMAGES_FOR_EACH * crops)
    return min(available, max(PICTURES, affordable))


class HeldoutTokens:
    """Held-out images for the base model or for super-resolution.

    The loss is that of training (`losses.token_loss`), also with as many captions dropped. The
    base model draws the captions of the first images; super-resolution draws them from their true
    low-res tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tokens,
        tokenizer: ImageTokenizer,
        config: Config,
        name: str,
        device: str,
    ):
        """tokens: those of all held-out images. tokenizer: the one whose tokens the model draws."""
        self.model = model
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.config = config
        self.name = name
        self.device = device
        self.sampling = sampling_of(config, name)
        self.batch = self.fixed_batch()
        # Without gradients, such a part of a batch needs less memory than training does.
        settings = getattr(config.stages, name)
        _, processes = collectives.rank_and_size()
        self.at_once = config.scale.micro_batch or max(1, settings.batch // processes)

    def fixed_batch(self) -> TokenBatch:
        """A batch whose mask ratios are spread evenly over the law that training draws them from.

        Ratios that are drawn would be too high or too low on average, and so would the loss.
        As many images as in training are without a caption, or fully hidden.
        """
        config, name = self.config, self.name
        M = count_for(getattr(config.stages, name), len(self.tokens))
        resolution = "low" if name == "base" else "high"
        generator = generator_at("held-out tokens", name)
        arguments = (self.tokens, torch.arange(M), generator, config, resolution, self.device)
        batch = draw_token_batch(self.model, *arguments)
        hidden = self.fixed_masks(*batch.ids.shape, generator).to(self.device)
        return batch._replace(
            masked_ids=batch.ids.masked_fill(hidden, self.model.mask_id),
            hidden=hidden,
            has_caption=torch.arange(M)[:, None] >= round(config.caption_dropout * M),
        )

    def fixed_masks(self, M: int, N: int, generator: torch.Generator) -> torch.Tensor:
        """Masks (M, N) bool; of super-resolution some rows are all True, the others spread."""
        full = round(self.config.fully_hidden * M) if self.name == "superres" else 0
        hidden = spread_masks(M - full, N, generator)
        if full:
            both = torch.cat([hidden, torch.ones(full, N, dtype=torch.bool)])
            hidden = both[torch.randperm(M, generator=generator)]
        return hidden

    @torch.no_grad()
    def look(self, step: int) -> Look:
        """The loss and the pictures after this step. Collective: every rank must call this."""
        with uncompiled(self.config):
            return Look(self.loss(), self.draw())

    def loss(self) -> float:
        """Mean nats for a hidden token."""
        batch = self.batch
        total = 0.0
        for rows in torch.arange(len(batch.ids)).split(self.at_once):
            logits = hidden_logits(self.model, batch, rows, self.device)
            ids, hidden = batch.ids[rows], batch.hidden[rows]
            fraction = hidden.sum() / batch.hidden.sum()
            total += float(fraction * masked_token_loss(logits, ids, hidden).loss)
        return total

    def draw(self) -> torch.Tensor:
        """Pictures (P, 3, H, W) of the first images' captions."""
        rows = torch.arange(min(PICTURES, len(self.tokens)))
        # With guidance, each picture takes two rows of a pass.
        parts = rows.split(max(1, self.at_once // 2))
        return torch.cat([self.draw_rows(part).cpu() for part in parts])

    def draw_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) of some images' captions, the same in a batch of any size."""
        text, visible = self.tokens.captions(rows)  # B T E, B T
        text, visible = text.to(self.device), visible.to(self.device)
        low = []  # the third argument of super-resolution
        if self.name == "superres":
            low = [self.tokens.ids("low", rows).to(self.device)]
        with autocast(self.device):
            context = self.model.context(text, visible, *low)
            # No caption is one without visible words.
            uncond = self.model.context(text, torch.zeros_like(visible), *low)
        grid = self.tokenizer.config.grid
        ids = torch.full((len(rows), grid**2), self.model.mask_id, device=self.device)
        generators = [generator_at("held-out noise", i, device=self.device) for i in rows.tolist()]
        arguments = (self.model.mask_id, context, uncond, self.sampling, generators)
        *_, step = decode(self.model, ids, *arguments)
        vectors = vectors_of(step, self.tokenizer)
        with autocast(self.device):
            images = self.tokenizer.decoder(rearrange(vectors, "B h w C -> B C h w"))
        return images.float().clamp(-1, 1)


class HeldoutImages:
    """Held-out images for the tokenizers and for the decoder: how they are reconstructed.

    The loss is that of pixels: the metric "pixel" of training. Whole images are reconstructed. The
    high-res stages train on crops of them, so the loss is that of crops, too.
    """

    def __init__(
        self,
        part: nn.Module,
        frozen: ImageTokenizer | None,
        images: Images,
        config: Config,
        name: str,
        device: str,
    ):
        """part: the model in training. frozen: the tokenizer whose codes a decoder gets."""
        self.part = part
        self.frozen = frozen
        self.images = images
        self.name = name
        self.device = device
        settings = getattr(config.stages, name)
        self.codes_from = 0
        if frozen is None:
            self.codes_from = first_step_with_codes(part, config, settings)
        self.crop = config.tokenizer.side
        crops = 1 if name == "tokenizer" else (config.tokenizer_hi.side // self.crop) ** 2
        self.count = count_for(settings, len(images), crops)
        _, processes = collectives.rank_and_size()
        self.at_once = max(1, settings.batch // processes // crops)

    @torch.no_grad()
    def look(self, step: int) -> Look:
        """The loss and the pictures after this step."""
        losses, drawn = [], []
        for rows in torch.arange(self.count).split(self.at_once):
            real = self.real(rows).to(self.device)
            with autocast(self.device):
                fake = self.reconstruct(real, step).float()
            losses.append(float(loss_of_crops(fake, real, self.crop)) * len(rows) / self.count)
            drawn.append(fake.cpu())
        return Look(sum(losses), torch.cat(drawn)[:PICTURES])

    def real(self, rows: torch.Tensor) -> torch.Tensor:
        """Some images (B, 3, H, W), of the size that the part is for."""
        batch = self.images.batch(rows)
        return halve(batch) if self.name == "tokenizer" else batch

    def reconstruct(self, real: torch.Tensor, step: int) -> torch.Tensor:
        """What the part makes of real images (B, 3, H, W) after this step: the same shape."""
        if self.frozen is not None:
            codes = self.frozen.quantizer.lookup(self.frozen.encode(real))  # B h w C
            return self.part(rearrange(codes, "B h w C -> B C h w"))
        if step <= self.codes_from:
            return self.part.autoencode(real)
        return self.part(real)[0]


def loss_of_crops(fake: torch.Tensor, real: torch.Tensor, side: int) -> torch.Tensor:
    """The mean pixel loss of crops at places that are spread evenly over images (B, 3, H, W).

    It differs from the loss of whole images: the middle, where most objects are, is in more crops.
    """
    H, W = real.shape[-2:]
    total = real.new_zeros(())
    for i in range(PLACES):
        y = int((i + 0.5) / PLACES * (H - side + 1))
        for j in range(PLACES):
            x = int((j + 0.5) / PLACES * (W - side + 1))
            place = (..., slice(y, y + side), slice(x, x + side))
            total += pixel_loss(fake[place], real[place])
    return total / PLACES**2


def sampling_of(config: Config, name: str) -> Sampling:
    """How a stage draws: as the configuration says.

    How many passes the entropy sampler takes depends on what is drawn. Processes that differ in a
    last digit would then wait for each other, so "confidence" takes its place.
    """
    sampling = config.sampling if name == "base" else config.sampling_hi
    if sampling.sampler in MAY_BE_AHEAD:
        return replace(sampling, sampler="confidence")
    return sampling


def spread_masks(M: int, N: int, generator: torch.Generator) -> torch.Tensor:
    """Masks (M, N) bool. Their ratios are M quantiles of the law of training, in random order."""
    u = (torch.randperm(M, generator=generator).double() + 0.5) / M
    ratios = torch.from_numpy(schedule.gamma(u.numpy()))
    return schedule.random_masks(schedule.mask_counts(ratios, N), N, generator)


def uncompiled(config: Config) -> AbstractContextManager:
    """Inside, compiled blocks run as they are.

    To compile them for the shapes of a few held-out images would take longer than their passes.
    """
    if not config.scale.compile:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
