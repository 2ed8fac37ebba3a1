import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import nn

from minimuse import data
from minimuse.data import Images, halve
from minimuse.device import autocast
from minimuse.maskgit import drop_captions, hide, masked_token_loss
from minimuse.plumbing import collectives
from minimuse.plumbing.config import Config, Stage
from minimuse.vq import perplexity


def token_loss(
    model: nn.Module, tokens: data.Tokens, config: Config, resolution: str, device: str
) -> Callable:
    """Of the base model ("low") and of super-resolution ("high"). Everything random is drawn for the whole batch, and a part counts by its
    share of all hidden tokens: however a batch is cut, into passes or over processes, the losses add up to the same."""

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        (rank, processes), B = collectives.rank_and_size(), len(indices)
        ids, below = tokens.ids(resolution, indices).to(device), ()
        if resolution == "high":  # what is learnt of each picture, under all of its low-res tokens
            below = tokens.ids("low", indices).to(device), model.places(ids, generator)
            ids = ids.gather(1, below[1])
        said = tokens.choose(indices, generator)
        kept = drop_captions(torch.ones(B, 1, dtype=torch.bool), config.caption_dropout, generator)
        corrupted = hide(ids, model.mask_id, generator)
        for rows in torch.arange(B).chunk(processes)[rank].split(config.scale.micro_batch or B):
            text, visible = data.pad([said[i] for i in rows.tolist()])
            text, visible, hidden = (
                text.to(device),
                (visible & kept[rows]).to(device),
                corrupted.hidden[rows],
            )
            with autocast(device):
                context = model.context(text, visible, *(x[rows] for x in below))
                logits = model(corrupted.ids[rows], context, hidden)
            loss, correct = masked_token_loss(logits, ids[rows], hidden)
            share = hidden.sum() / corrupted.hidden.sum()
            yield (
                share * loss,
                {"accuracy": share * correct, "chance": share * math.log(model.mask_id)},
            )  # ln K: the loss of a guess

    return parts_of


def crop(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, side, side), at a random place that the batch shares."""
    y, x = (
        int(torch.randint(length - side + 1, (), generator=generator))
        for length in images.shape[-2:]
    )
    return images[..., y : y + side, x : x + side]


def tokenizer_loss(
    model: nn.ModuleDict,
    pictures: Images,
    config: Config,
    settings: Stage,
    low: bool,
    device: str,
) -> Callable:
    """Of a VQGAN: pictures as they should be, and latents close to their codes. Moves the codebook.

    The high-res one, being fully convolutional, learns from pieces as large as the low-res pictures. For a share `quantize_from` of the
    steps it is a plain autoencoder: the encoder would settle for the few among codes placed at random that it can tell apart."""
    tokenizer, picture_loss = model["part"], model["loss"]
    quantize_from = round(config.loss.quantize_from * settings.steps)

    def images_at(indices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        images = pictures.batch(indices).to(device)
        return halve(images) if low else crop(images, config.tokenizer.side, generator)

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        images = images_at(indices, generator)
        if step == quantize_from:
            some = torch.randint(len(pictures), (256,), generator=generator).split(
                32
            )  # few pictures would miss whole colours
            with autocast(device), torch.no_grad():
                tokenizer.quantizer.start(
                    torch.cat([tokenizer.latents(images_at(i, generator)) for i in some]), generator
                )
        with autocast(device):
            if step < quantize_from:
                yield picture_loss(
                    tokenizer.autoencode(images), images, tokenizer.decoder[-1].weight, False
                )
                return
            fake, z, ids, commitment = tokenizer(images)
            adversarial = step >= config.loss.adversarial_from * settings.steps
            loss, metrics = picture_loss(fake, images, tokenizer.decoder[-1].weight, adversarial)
        tokenizer.quantizer.update(z, ids, generator)
        yield (
            loss + config.loss.commitment * commitment,
            metrics | {"perplexity": perplexity(ids, tokenizer.config.codes)[0]},
        )

    return parts_of


def decoder_loss(
    model: nn.ModuleDict,
    frozen: nn.Module,
    pictures: Images,
    config: Config,
    settings: Stage,
    device: str,
) -> Callable:
    """Of the finetuned decoder: the same picture loss, from the frozen encoder's codes of pieces as small as the tokenizer's."""
    decoder, picture_loss = model["part"], model["loss"]

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        images = crop(pictures.batch(indices).to(device), config.tokenizer.side, generator)
        with autocast(device):
            fake = decoder(
                rearrange(frozen.quantizer.lookup(frozen.encode(images)), "B h w D -> B D h w")
            )
            adversarial = step >= config.loss.adversarial_from * settings.steps
            yield picture_loss(fake, images, decoder[-1].weight, adversarial)

    return parts_of
