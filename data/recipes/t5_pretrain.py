"""How a T5 learns to read: hide spans of a text, and let a decoder predict what was hidden.

The frozen encoder of t5_frozen.py was trained on this task (T5, 1910.10683, section 3.1.4). It has
no labels: a text is its own answer. The decoder only serves to train the encoder, and is
thrown away: only the encoder's state dict is shipped.

    python data/recipes/build_t5.py --work DIR --out DIR

    text     a  small red circle on  a grey background </s>
    encoder  a  small <X> on         a <Y> background  </s>
    targets  <X> red circle <Y> grey <Z>

Left out: dropout, packing several texts into a row, the supervised tasks of T5.
Letters: B batch, T text tokens, U target tokens, E text width, H heads, V vocabulary.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from minimuse.t5_frozen import (
    EOS,
    PAD,
    Attention,
    FeedForward,
    T5Config,
    T5Encoder,
    mask_bias,
    rms_norm,
    sublayer,
)


def initialize_weights(model: nn.Module, config: T5Config, generator: torch.Generator) -> None:
    """T5's initial weights, for an encoder, a decoder or both."""
    narrow = config.d_model**-0.5
    std = {
        "shared": 1.0,
        "q": narrow * config.d_kv**-0.5,  # with the 1 / sqrt(d) that attention leaves out
        "k": narrow,
        "v": narrow,
        "o": (config.num_heads * config.d_kv) ** -0.5,
        "relative_attention_bias": narrow,
        "wi": narrow,
        "wi_0": narrow,
        "wi_1": narrow,
        "wo": config.d_ff**-0.5,
    }
    for name, parameter in model.named_parameters():
        module = name.split(".")[-2]
        if not module.endswith("layer_norm"):  # the norms are ones already
            nn.init.normal_(parameter, std=std[module], generator=generator)


# --- Span corruption ---


def random_lengths(total: int, parts: int, generator: torch.Generator) -> list[int]:
    """`parts` positive integers that sum to `total`, every such list equally likely."""
    cuts = torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1
    edges = [0, *cuts.tolist(), total]
    return [right - left for left, right in itertools.pairwise(edges)]


def corrupt_row(
    tokens: list[int], vocab_size: int, generator: torch.Generator, rate: float, mean_span: float
) -> tuple[list[int], list[int]]:
    """One text without its eos -> (encoder ids, target ids).

    The fraction `rate` of the tokens is hidden, in spans of about `mean_span` tokens. The sentinels
    <X>, <Y>, <Z> are the last ids of the vocabulary, counted down, which the SentencePiece model
    never produces. One more than there are spans closes the targets.
    """
    if len(tokens) == 0:
        raise ValueError("a text of 0 tokens cannot be corrupted; drop empty lines")
    hidden = min(max(round(len(tokens) * rate), 1), max(len(tokens) - 1, 1))
    kept = len(tokens) - hidden
    spans = min(max(round(hidden / mean_span), 1), hidden, kept + 1)
    hidden_lengths = random_lengths(hidden, spans, generator)
    # The kept stretches before the first and after the last span may be empty. (T5's own code
    # ends every text in a span, which would hide nothing but the background of a short caption.)
    kept_lengths = random_lengths(kept + 2, spans + 1, generator)
    kept_lengths[0] -= 1
    kept_lengths[-1] -= 1

    inputs, targets = [], []
    position = 0
    for i in range(spans):
        sentinel = vocab_size - 1 - i
        span_start = position + kept_lengths[i]
        span_end = span_start + hidden_lengths[i]
        inputs += [*tokens[position:span_start], sentinel]
        targets += [sentinel, *tokens[span_start:span_end]]
        position = span_end
    inputs += [*tokens[position:], EOS]
    targets.append(vocab_size - 1 - spans)
    return inputs, targets


def corrupt(
    ids: torch.Tensor,
    mask: torch.Tensor,
    vocab_size: int,
    generator: torch.Generator,
    rate: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Span corruption of a batch from the tokenizer (T5, section 3.1.4).

    ids (B, T), mask (B, T) -> encoder ids (B, T'), encoder mask (B, T'), decoder inputs
    (B, U), targets (B, U). The decoder's inputs are the targets, one place later, after a pad.
    """
    inputs, targets = [], []
    for row, length in zip(ids.tolist(), mask.sum(1).tolist(), strict=True):
        tokens = row[: max(length - 1, 0)]  # without eos
        row_inputs, row_targets = corrupt_row(tokens, vocab_size, generator, rate, mean_span)
        inputs.append(torch.tensor(row_inputs))
        targets.append(torch.tensor(row_targets))
    real = [torch.ones(len(row), dtype=torch.bool) for row in inputs]
    encoder_mask = pad_sequence(real, batch_first=True)
    encoder_ids = pad_sequence(inputs, batch_first=True, padding_value=PAD)
    targets = pad_sequence(targets, batch_first=True, padding_value=PAD)
    decoder_inputs = F.pad(targets[:, :-1], (1, 0), value=PAD)
    return encoder_ids, encoder_mask, decoder_inputs, targets


# --- The decoder ---


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the encoder's output, MLP."""

    def __init__(self, config: T5Config, owns_bias: bool):
        super().__init__()
        own = Attention(config, owns_bias, bidirectional=False)
        cross = Attention(config, owns_bias=False, bidirectional=False)
        mlp = FeedForward(config)
        layers = [
            sublayer(config, SelfAttention=own),
            sublayer(config, EncDecAttention=cross),
            sublayer(config, DenseReluDense=mlp),
        ]
        self.layer = nn.ModuleList(layers)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, text: torch.Tensor, text_bias: torch.Tensor
    ) -> torch.Tensor:
        """x (B, U, E), text (B, T, E) and the bias for each -> (B, U, E)."""
        own, cross, mlp = self.layer
        h = own.layer_norm(x)  # (B, U, E)
        x = x + own.SelfAttention(h, h, bias)  # (B, U, E)
        # Attention to the text has no position bias in T5: text_bias only hides padding.
        x = x + cross.EncDecAttention(cross.layer_norm(x), text, text_bias)  # (B, U, E)
        return x + mlp.DenseReluDense(mlp.layer_norm(x))  # (B, U, E)


class T5Decoder(nn.Module):
    """Reads the encoder's output and the target so far. It may be shallower than the encoder."""

    def __init__(self, config: T5Config, num_layers: int):
        super().__init__()
        blocks = [DecoderBlock(config, owns_bias=i == 0) for i in range(num_layers)]
        self.block = nn.ModuleList(blocks)
        self.final_layer_norm = rms_norm(config)

    def forward(self, x: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """x (B, U, E), text (B, T, E), text_mask (B, T) -> (B, U, E)."""
        U = x.shape[1]
        causal = torch.ones(U, U, dtype=torch.bool, device=x.device).tril()
        bias = self.block[0].layer[0].SelfAttention.position_bias(U)  # (1, H, U, U)
        bias = mask_bias(bias, causal)  # (1, H, U, U)
        text_bias = torch.zeros_like(text_mask, dtype=x.dtype)  # (B, T)
        text_bias = mask_bias(text_bias, text_mask)[:, None, None, :]  # (B, 1, 1, T)
        for block in self.block:
            x = block(x, bias, text, text_bias)  # (B, U, E)
        return self.final_layer_norm(x)


class T5Pretrainer(nn.Module):
    """Encoder, decoder, and a head that is the embedding itself, as in T5 v1.0.

    v1.1 gives the head a matrix of its own. Here that would be a quarter of all parameters, and the
    tied one trains the embedding twice.
    """

    def __init__(self, config: T5Config, decoder_layers: int, generator: torch.Generator):
        super().__init__()
        self.text = T5Encoder(config)
        self.decoder = T5Decoder(config, decoder_layers)
        initialize_weights(self, config, generator)

    def token_losses(
        self,
        encoder_ids: torch.Tensor,
        encoder_mask: torch.Tensor,
        decoder_inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """What `corrupt` returns -> the loss of each real target in nats, row after row."""
        text = self.text(encoder_ids, encoder_mask)  # (B, T, E)
        x = self.text.shared(decoder_inputs)  # (B, U, E)
        x = self.decoder(x, text, encoder_mask)  # (B, U, E)
        real = targets != PAD  # (B, U)
        # The embedding has variance 1. With the scale E^-0.5 the loss starts near ln V.
        x = x[real] * self.text.config.d_model**-0.5  # (targets, E)
        logits = F.linear(x, self.text.shared.weight).float()  # (targets, V)
        return F.cross_entropy(logits, targets[real], reduction="none")

    def forward(
        self,
        encoder_ids: torch.Tensor,
        encoder_mask: torch.Tensor,
        decoder_inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """-> the mean loss of a target token, in nats."""
        return self.token_losses(encoder_ids, encoder_mask, decoder_inputs, targets).mean()
