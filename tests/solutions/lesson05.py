"""Right solutions of lesson 05, in other ways."""

import math

import torch
import torch.nn.functional as F


# --- grid_positions ---
def positions_by_loops(rows, columns):
    return torch.stack([row + column for row in rows for column in columns])


def positions_by_repeating(rows, columns):
    return rows.repeat_interleave(len(columns), 0) + columns.repeat(len(rows), 1)


def positions_by_indexing(rows, columns):
    n = torch.arange(len(rows) * len(columns))
    return rows[n // len(columns)] + columns[n % len(columns)]


# --- hide ---
def ratios_of(batch, generator):
    return torch.cos(math.pi / 2 * torch.rand(batch, generator=generator, dtype=torch.float64))


def hide_row_by_row(ids, mask_id, generator):
    B, N = ids.shape
    hidden = torch.zeros(B, N, dtype=torch.bool)
    for b in range(B):
        count = max(1, math.ceil(float(ratios_of(1, generator)) * N))
        hidden[b, torch.randperm(N, generator=generator)[:count]] = True
    masked = ids.clone()
    masked[hidden] = mask_id
    return masked, hidden


def hide_by_ranks(ids, mask_id, generator):
    B, N = ids.shape
    counts = (ratios_of(B, generator) * N).ceil().clamp(min=1)
    ranks = torch.rand(B, N, generator=generator).argsort(-1).argsort(-1)
    hidden = ranks < counts[:, None]
    return torch.where(hidden, mask_id, ids), hidden


def hide_by_multinomial(ids, mask_id, generator):
    B, N = ids.shape
    counts = (ratios_of(B, generator) * N).ceil().long().clamp(1, N)
    order = torch.multinomial(torch.ones(B, N), N, generator=generator)
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden.scatter_(1, order, torch.arange(N).expand(B, N) < counts[:, None])
    return ids * ~hidden + mask_id * hidden, hidden


# --- drop_captions ---
def drop_by_rand(visible, share, generator):
    kept = torch.rand(len(visible), 1, generator=generator) >= share
    return visible & kept


def drop_by_bernoulli(visible, share, generator):
    dropped = torch.bernoulli(torch.full((len(visible),), share), generator=generator).bool()
    result = visible.clone()
    result[dropped] = False
    return result


def drop_one_by_one(visible, share, generator):
    rows = []
    for row in visible:
        dropped = torch.rand(1, generator=generator, dtype=torch.float64).item() < share
        rows.append(torch.zeros_like(row) if dropped else row)
    return torch.stack(rows)


# --- attend ---
def attend_by_sdpa(q, k, v, visible=None, bias=None):
    if visible is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    has_keys = visible.any(-1)[:, None, None, None]
    mask = visible[:, None, None, :] | ~has_keys
    if bias is not None:
        mask = torch.where(mask, bias, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask) * has_keys


def attend_by_einsum(q, k, v, visible=None, bias=0):
    scores = torch.einsum("bhnd,bhtd->bhnt", q, k) / math.sqrt(q.shape[-1]) + bias
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, None, :], torch.finfo(q.dtype).min)
    weights = scores.softmax(-1)
    if visible is not None:
        weights = weights * visible[:, None, None, :]
    return torch.einsum("bhnt,bhtd->bhnd", weights, v)


def attend_row_by_row(q, k, v, visible=None, bias=None):
    rows = []
    for b in range(len(q)):
        seen = slice(None) if visible is None else visible[b]
        keys, values = k[b][:, seen], v[b][:, seen]
        if keys.shape[1] == 0:
            rows.append(q[b] * 0)
            continue
        scores = q[b] @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + bias[:, :, seen]
        weights = (scores - scores.amax(-1, keepdim=True).detach()).exp()
        rows.append(weights / weights.sum(-1, keepdim=True) @ values)
    return torch.stack(rows)


def attend_by_exponentials(q, k, v, visible=None, bias=None):
    scores = (q * q.shape[-1] ** -0.25) @ (k * q.shape[-1] ** -0.25).mT
    if bias is not None:
        scores += bias
    if visible is None:
        visible = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool)
    visible = visible[:, None, None, :]
    largest = scores.masked_fill(~visible, -torch.inf).amax(-1, keepdim=True).detach()
    largest = largest.clamp(min=-1e30)
    weights = torch.where(visible, scores - largest, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    return weights @ v / torch.where(total > 0, total, 1)


# --- block ---
def block_in_one_piece(x, text, visible, weights, heads):
    """One function for both attentions."""

    def attention(name, x, other, visible, bias):
        q = x @ weights[f"{name}_q"]
        k, v = other @ weights[f"{name}_k"], other @ weights[f"{name}_v"]
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
        mixed = attend_by_sdpa(q, k, v, visible, bias)
        return mixed.transpose(1, 2).flatten(2) @ weights[f"{name}_out"]

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], weights[f"norm_{name}"])

    normed = norm("self", x)
    x = x + attention("self", normed, normed, None, weights["bias"])
    x = x + attention("cross", norm("cross", x), text, visible, None)
    return x + F.gelu(norm("mlp", x) @ weights["mlp_up"]) @ weights["mlp_down"]


def norm_by_hand(x, gain):
    """Without the 1e-5, which changes little."""
    shifted = x - x.mean(-1, keepdim=True)
    return shifted / shifted.square().mean(-1, keepdim=True).sqrt() * gain


def block_head_by_head(x, text, visible, weights, heads):
    """The results of the heads are not put together: each has its rows of the out matrix."""
    d = x.shape[-1] // heads

    def attention(name, x, other, visible, biases):
        total = 0
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            q, k, v = (
                (vectors @ weights[f"{name}_{letter}"][:, part])[:, None]
                for vectors, letter in ((x, "q"), (other, "k"), (other, "v"))
            )
            mixed = attend_by_einsum(q, k, v, visible, biases[h])
            total = total + mixed[:, 0] @ weights[f"{name}_out"][part]
        return total

    normed = norm_by_hand(x, weights["norm_self"])
    x = x + attention("self", normed, normed, None, weights["bias"])
    normed = norm_by_hand(x, weights["norm_cross"])
    x = x + attention("cross", normed, text, visible, [0] * heads)
    up = norm_by_hand(x, weights["norm_mlp"]) @ weights["mlp_up"]
    return x + up * (1 + torch.erf(up / math.sqrt(2))) / 2 @ weights["mlp_down"]


def block_image_by_image(x, text, visible, weights, heads):
    """Without a visible word there is no cross-attention. Hidden words are cut out."""

    def by_heads(vectors, matrix):
        return (vectors @ matrix).view(1, len(vectors), heads, -1).permute(0, 2, 1, 3)

    def together(mixed):
        return torch.cat(list(mixed[0]), dim=-1)

    images = []
    for image, words, seen in zip(x, text, visible, strict=True):
        normed = F.layer_norm(image, image.shape[-1:], weights["norm_self"])
        q, k, v = (by_heads(normed, weights["self_" + letter]) for letter in "qkv")
        mixed = attend_by_exponentials(q, k, v, None, weights["bias"])
        image = image + together(mixed) @ weights["self_out"]
        if seen.any():
            normed = F.layer_norm(image, image.shape[-1:], weights["norm_cross"])
            q = by_heads(normed, weights["cross_q"])
            k, v = (by_heads(words[seen], weights["cross_" + letter]) for letter in "kv")
            mixed = attend_by_exponentials(q, k, v)
            image = image + together(mixed) @ weights["cross_out"]
        normed = F.layer_norm(image, image.shape[-1:], weights["norm_mlp"])
        image = image + F.gelu(normed @ weights["mlp_up"]) @ weights["mlp_down"]
        images.append(image)
    return torch.stack(images)


def block_of_torch_modules(x, text, visible, weights, heads):
    """PyTorch's multi-head attention. Words that nobody may see are read as zeros."""
    D = x.shape[-1]

    def attention(name, x, other, mask, bias):
        options = dict(use_separate_proj_weight=True, need_weights=False, key_padding_mask=mask)
        for letter in "qkv":
            options[f"{letter}_proj_weight"] = weights[f"{name}_{letter}"].T
        out = weights[f"{name}_out"].T
        x, other = x.transpose(0, 1), other.transpose(0, 1)
        mixed, _ = F.multi_head_attention_forward(
            *(x, other, other, D, heads, None, None, None, None, False, 0.0, out, None),
            attn_mask=bias,
            **options,
        )
        return mixed.transpose(0, 1)

    def norm(name, x):
        return F.layer_norm(x, (D,), weights[f"norm_{name}"])

    is_absent = ~visible.any(dim=1, keepdim=True)
    normed = norm("self", x)
    x = x + attention("self", normed, normed, None, weights["bias"].repeat(len(x), 1, 1))
    words = torch.where(is_absent[..., None], 0, text)
    mask = torch.zeros(visible.shape, dtype=x.dtype)
    mask = mask.masked_fill(~(visible | is_absent), -torch.inf)
    x = x + attention("cross", norm("cross", x), words, mask, None)
    return x + F.gelu(norm("mlp", x) @ weights["mlp_up"]) @ weights["mlp_down"]


# --- masked_token_loss ---
def loss_by_cross_entropy(logits, ids, hidden):
    target = ids[hidden]
    return F.cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()


def loss_by_gather(logits, ids, hidden):
    target = torch.masked_select(ids, hidden)
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    right = (logits.max(-1).indices == target).sum() / len(target)
    return -log_p.gather(1, target[:, None]).sum() / len(target), right


def loss_token_by_token(logits, ids, hidden):
    losses, right, m = [], 0, 0
    for b, n in hidden.nonzero().tolist():
        true = int(ids[b, n])
        losses.append(logits[m].logsumexp(0) - logits[m, true])
        right += int(logits[m].argmax()) == true
        m += 1
    return torch.stack(losses).mean(), torch.tensor(right / m)


def loss_in_float64(logits, ids, hidden):
    target = ids.flatten()[hidden.flatten()]
    log_p = F.log_softmax(logits.double(), dim=-1)
    loss = F.nll_loss(log_p, target)
    return loss, (logits.argmax(-1) == target).double().mean()


RIGHT = {
    "grid_positions": (positions_by_loops, positions_by_repeating, positions_by_indexing),
    "hide": (hide_row_by_row, hide_by_ranks, hide_by_multinomial),
    "drop_captions": (drop_by_rand, drop_by_bernoulli, drop_one_by_one),
    "attend": (attend_by_sdpa, attend_by_einsum, attend_row_by_row, attend_by_exponentials),
    "block": (
        block_in_one_piece,
        block_head_by_head,
        block_image_by_image,
        block_of_torch_modules,
    ),
    "masked_token_loss": (
        loss_by_cross_entropy,
        loss_by_gather,
        loss_token_by_token,
        loss_in_float64,
    ),
}
