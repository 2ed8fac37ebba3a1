"""The models that `peer.py` compares, behind the same few calls.

Ours                our base model
MuseMaskgit         muse-maskgit-pytorch's transformer, a port of Muse
Amused              diffusers' UVit2DModel, the transformer of aMUSEd, a smaller relative of Muse

Each has `loss`, of one training step, and `draw`, which decodes with guidance. The first two also
have `nll`. Text is embedded beforehand, and no tokenizer takes part.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F

from minimuse.decode import Sampling, decode
from minimuse.maskgit import BaseConfig, MaskGit, drop_captions, hide, masked_token_loss
from minimuse.metrics.likelihood import hidden_nll
from minimuse.plumbing.device import generator_at

TORCHVISION = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.datasets",
    "torchvision.utils",
)
MICRO_CONDITIONS = 5  # width, height, two coordinates of the crop, and an aesthetic score


def import_muse_maskgit():
    """The package. It needs torchvision only for images; if that is missing, a mock replaces it."""
    import accelerate  # noqa: F401
    import transformers

    # transformers loads these lazily. Load them before the mock, which they would find.
    for name in ("T5EncoderModel", "T5Tokenizer", "T5Config"):
        getattr(transformers, name)
    if not find_spec("torchvision"):
        for name in TORCHVISION:
            sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
    import muse_maskgit_pytorch
    from muse_maskgit_pytorch import muse_maskgit_pytorch as inner
    from muse_maskgit_pytorch.t5 import T5_CONFIGS

    inner.tqdm = lambda steps, **_: steps  # no progress bar in its timings
    return muse_maskgit_pytorch, T5_CONFIGS


class Ours:
    """Our base model behind the few calls that are compared."""

    def __init__(self, shape: SimpleNamespace, seed: int = 0):
        torch.manual_seed(seed)
        size = BaseConfig(shape.width, shape.layers, shape.heads)
        self.model = MaskGit(size, shape.codes, shape.grid, shape.text_width)
        self.shape = shape

    def loss(self, ids, text, visible, generator) -> torch.Tensor:
        context = self.model.context(text, drop_captions(visible, 0.1, generator))
        corrupted = hide(ids, self.model.mask_id, generator)
        logits = self.model(corrupted.ids, context, corrupted.hidden)
        loss, _ = masked_token_loss(logits, ids, corrupted.hidden)
        return loss

    @torch.no_grad()
    def draw(self, text, visible, passes: int, guidance: float, seed: int = 0) -> torch.Tensor:
        model = self.model
        sampling = Sampling(steps=passes, guidance=guidance, ramp=False)
        ids = torch.full((len(text), self.shape.grid**2), model.mask_id)
        cond = model.context(text, visible)
        uncond = None
        if guidance:
            uncond = model.context(torch.zeros_like(text), torch.zeros_like(visible))
        generators = [generator_at(seed, i) for i in range(len(text))]
        for step in decode(model, ids, model.mask_id, cond, uncond, sampling, generators):
            ids = step.ids
        return ids

    def nll(self, ids, text, visible, hidden) -> torch.Tensor:
        def context(rows):
            return self.model.context(text[rows], visible[rows])

        return hidden_nll(self.model, ids, context, hidden)


class MuseMaskgit:
    """muse-maskgit-pytorch. It has two ways to compute attention: written out, and `flash`."""

    def __init__(self, shape: SimpleNamespace, flash: bool, seed: int = 0):
        package, configs = import_muse_maskgit()
        torch.manual_seed(seed)
        configs["none"] = {"config": SimpleNamespace(d_model=shape.text_width)}
        self.model = package.MaskGitTransformer(
            num_tokens=shape.codes,
            seq_len=shape.grid**2,
            dim=shape.width,
            depth=shape.layers,
            dim_head=shape.width // shape.heads,
            heads=shape.heads,
            ff_mult=4,
            flash=flash,
            t5_name="none",
        )
        tokenizer = package.VQGanVAE(
            dim=16, layers=1, codebook_size=shape.codes, use_vgg_and_gan=False
        )
        self.whole = package.MaskGit(
            image_size=2 * shape.grid,
            transformer=self.model,
            vae=tokenizer,
            cond_drop_prob=0.1,
        )
        del self.whole.vae, self.whole.cond_vae
        self.whole.vae = SimpleNamespace(
            get_encoded_fmap_size=lambda side: shape.grid, decode_from_ids=lambda ids: ids
        )
        self.shape = shape

    def loss(self, ids, text, visible, generator) -> torch.Tensor:
        return self.whole(ids, text_embeds=text)

    def draw(self, text, visible, passes: int, guidance: float, seed: int = 0) -> torch.Tensor:
        torch.manual_seed(seed)
        self.model.encode_text = lambda texts: text
        grids = self.whole.generate(
            texts=[""] * len(text),
            timesteps=passes,
            cond_scale=1 + guidance,  # its scale 1 is no guidance
        )
        return grids.flatten(1)

    @torch.no_grad()
    def nll(self, ids, text, visible, hidden) -> torch.Tensor:
        logits = self.model(ids.masked_fill(hidden, self.model.mask_id), text_embeds=text)
        nll = F.cross_entropy(logits.transpose(1, 2).float(), ids, reduction="none")  # B N
        return (nll * hidden).sum(dim=1) / hidden.sum(dim=1)


class Amused:
    """diffusers' UVit2DModel without convolutional blocks, which would add depth."""

    def __init__(self, shape: SimpleNamespace, seed: int = 0):
        from diffusers import AmusedScheduler, UVit2DModel

        torch.manual_seed(seed)
        width = shape.width
        self.mask_id = shape.codes
        self.model = UVit2DModel(
            hidden_size=width,
            in_channels=width,
            block_out_channels=width,
            num_res_blocks=0,
            block_num_heads=shape.heads,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=11 * width // 4,  # as in aMUSEd, 2,816 of 1,024
            cond_embed_dim=shape.text_width,
            micro_cond_embed_dim=256 * MICRO_CONDITIONS,
            encoder_hidden_size=shape.text_width,
            vocab_size=shape.codes + 1,
            codebook_size=shape.codes,
            sample_size=shape.grid,
        )
        self.scheduler = AmusedScheduler(mask_token_id=self.mask_id)
        self.shape = shape

    def logits(self, ids: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """ids (B, h, w), text (B, T, E) -> (B, K, h, w). The pooled text is the mean."""
        conditions = torch.zeros(len(ids), MICRO_CONDITIONS)
        return self.model(ids, text, text.mean(dim=1), conditions)

    def loss(self, ids, text, visible, generator) -> torch.Tensor:
        text = text * drop_captions(visible, 0.1, generator)[..., None]
        corrupted = hide(ids, self.mask_id, generator)
        side = self.shape.grid
        logits = self.logits(corrupted.ids.unflatten(1, (side, side)), text)
        # As in aMUSEd's training script: the logits of all tokens, and the loss of the hidden ones.
        target = ids.masked_fill(~corrupted.hidden, -100)
        return F.cross_entropy(logits.flatten(2), target, ignore_index=-100)

    @torch.no_grad()
    def draw(self, text, visible, passes: int, guidance: float, seed: int = 0) -> torch.Tensor:
        """The loop of AmusedPipeline, whose guidance scale is 1 + ours."""
        generator = torch.Generator().manual_seed(seed)
        side = self.shape.grid
        ids = torch.full((len(text), side, side), self.mask_id)
        both = torch.cat([torch.zeros_like(text), text])
        self.scheduler.set_timesteps(passes)
        for timestep in self.scheduler.timesteps:
            uncond, cond = self.logits(torch.cat([ids, ids]), both).chunk(2)
            guided = uncond + (1 + guidance) * (cond - uncond)
            ids = self.scheduler.step(guided, timestep, ids, generator=generator).prev_sample
        return ids.flatten(1)


Side = Ours | MuseMaskgit | Amused
