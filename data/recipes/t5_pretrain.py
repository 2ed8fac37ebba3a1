"""How a T5 learns to read: hide spans of a text, and have a decoder say what was hidden.

The frozen encoder of t5_frozen.py came out of this task (T5 paper, 1910.10683, section
3.1.4). Nobody labels anything: a text is its own answer. The decoder is there to make the
encoder understand and is thrown away; only the encoder's state dict is shipped.

    python data/build_t5.py --work DIR --out DIR

    text     a  small red circle on  a grey background </s>
    encoder  a  small <X> on         a <Y> background  </s>
    targets  <X> red circle <Y> grey <Z>

Left out: dropout, packing several texts into a row, the supervised tasks of T5.
Letters: B batch, T text tokens, U target tokens, E text width, H heads, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from minimuse.t5_frozen import (
    EOS,
    PAD,
    Attention,
    FeedForward,
    T5Encoder,
    mask_bias,
    rms_norm,
    sublayer,
)


def initialize_weights(model, config, generator):
    """T5's initialisation, for an encoder, a decoder or both."""
    narrow = config.d_model**-0.5
    std = dict.fromkeys(("k", "v", "wi", "wi_0", "wi_1", "relative_attention_bias"), narrow)
    std |= {"shared": 1.0, "o": (config.num_heads * config.d_kv) ** -0.5, "wo": config.d_ff**-0.5}
    std |= {"q": narrow * config.d_kv**-0.5}  # the 1/sqrt(d) that attention leaves out
    for name, parameter in model.named_parameters():
        module = name.split(".")[-2]
        if not module.endswith("layer_norm"):  # the norms are ones already
            nn.init.normal_(parameter, std=std[module], generator=generator)


def random_lengths(total, parts, generator):
    """`parts` positive integers that sum to `total`, every such list equally likely."""
    cuts = torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1
    edges = [0, *cuts.tolist(), total]
    return [right - left for left, right in zip(edges, edges[1:])]


def corrupt_row(tokens, vocab_size, generator, rate, mean_span):
    """One text without its eos -> (encoder ids, target ids), both lists.

    The sentinels <X>, <Y>, <Z> are the last ids of the vocabulary, counted down, which the
    SentencePiece model never produces; one more than there are spans closes the targets.
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

    inputs, targets, at = [], [], 0
    for i in range(spans):
        sentinel = vocab_size - 1 - i
        inputs += tokens[at : at + kept_lengths[i]] + [sentinel]
        at += kept_lengths[i]
        targets += [sentinel] + tokens[at : at + hidden_lengths[i]]
        at += hidden_lengths[i]
    return inputs + tokens[at:] + [EOS], targets + [vocab_size - 1 - spans]


def corrupt(ids, mask, vocab_size, generator, rate=0.15, mean_span=3.0):
    """Span corruption of a batch that the tokenizer made (T5 paper, section 3.1.4).

    ids (B, T), mask (B, T) -> encoder ids (B, T'), encoder mask (B, T'), decoder inputs
    (B, U), targets (B, U). The decoder's inputs are the targets one place later, behind a pad.
    """
    inputs, targets = [], []
    for row, length in zip(ids.tolist(), mask.sum(1).tolist()):
        tokens = row[: max(length - 1, 0)]  # without eos
        pair = corrupt_row(tokens, vocab_size, generator, rate, mean_span)
        inputs.append(torch.tensor(pair[0]))
        targets.append(torch.tensor(pair[1]))
    encoder_mask = pad_sequence(
        [torch.ones(len(row), dtype=torch.bool) for row in inputs], batch_first=True
    )
    encoder_ids = pad_sequence(inputs, batch_first=True, padding_value=PAD)
    targets = pad_sequence(targets, batch_first=True, padding_value=PAD)
    return encoder_ids, encoder_mask, F.pad(targets[:, :-1], (1, 0), value=PAD), targets


class DecoderBlock(nn.Module):
    def __init__(self, config, owns_bias):
        super().__init__()
        self.layer = nn.ModuleList(
            [
                sublayer(config, SelfAttention=Attention(config, owns_bias, bidirectional=False)),
                sublayer(
                    config, EncDecAttention=Attention(config, owns_bias=False, bidirectional=False)
                ),
                sublayer(config, DenseReluDense=FeedForward(config)),
            ]
        )

    def forward(self, x, bias, text, text_bias):
        attention, cross, mlp = self.layer
        h = attention.layer_norm(x)
        x = x + attention.SelfAttention(h, h, bias)
        x = x + cross.EncDecAttention(
            cross.layer_norm(x), text, text_bias
        )  # without a position bias, as in T5
        return x + mlp.DenseReluDense(mlp.layer_norm(x))


class T5Decoder(nn.Module):
    """Reads the encoder's output and the target so far; it may be shallower than the encoder."""

    def __init__(self, config, num_layers):
        super().__init__()
        self.block = nn.ModuleList(
            [DecoderBlock(config, owns_bias=i == 0) for i in range(num_layers)]
        )
        self.final_layer_norm = rms_norm(config)

    def forward(self, x, text, text_mask):
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

    (v1.1 gives the head its own matrix. Here it would be a quarter of all parameters, and
    the tied one teaches the embedding twice.)
    """

    def __init__(self, config, decoder_layers, generator):
        super().__init__()
        self.text = T5Encoder(config)
        self.decoder = T5Decoder(config, decoder_layers)
        initialize_weights(self, config, generator)

    def token_losses(self, encoder_ids, encoder_mask, decoder_inputs, targets):
        """What `corrupt` returns -> the loss of every real target in nats, row after row, padding left out."""
        text = self.text(encoder_ids, encoder_mask)  # (B, T, E)
        x = self.text.shared(decoder_inputs)  # (B, U, E)
        x = self.decoder(x, text, encoder_mask)  # (B, U, E)
        real = targets != PAD
        # The embedding has variance 1, so the product with it needs the scale d^-0.5 to start near ln V.
        x = x[real] * self.text.config.d_model**-0.5  # (targets, E)
        logits = F.linear(x, self.text.shared.weight).float()  # (targets, V)
        return F.cross_entropy(logits, targets[real], reduction="none")

    def forward(self, encoder_ids, encoder_mask, decoder_inputs, targets):
        """-> the mean loss of a target token, in nats."""
        return self.token_losses(encoder_ids, encoder_mask, decoder_inputs, targets).mean()
