"""The loss of one big batch as a textbook writes it; imports nothing of the code it checks."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation

CLASSES = 81
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IGNORE = 255


def plain_network():
    """A tiny SegFormer without dropout, built by transformers alone, in eval mode."""
    torch.manual_seed(5)
    config = SegformerConfig(
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 8],
        decoder_hidden_size=128,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        num_labels=CLASSES,
    )
    return SegformerForSemanticSegmentation(config).eval()


def images_to_input(images):
    x = images.permute(0, 3, 1, 2).float() / 255
    return ((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).double()


def dice_of_batch(logits, masks):
    """Mean over images of 1 − (2 Σ p g + 1) / (Σ p + Σ g + 1), averaged over an image's classes."""
    values = []
    for scores, mask in zip(logits.softmax(dim=1), masks, strict=True):
        valid = mask != IGNORE
        if not valid.any():
            continue
        terms = []
        for c in mask[valid].unique():
            p, g = scores[c][valid], (mask[valid] == c).double()
            terms.append(1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1))
        values.append(torch.stack(terms).mean())
    return torch.stack(values).mean()


def hardest(logits, masks, share):
    """Mean −log p over the hardest share of each image's valid pixels."""
    each = F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="none")
    kept = []
    for values, mask in zip(each, masks, strict=True):
        own = values[mask != IGNORE]
        kept.append(own.topk(-int(-share * len(own) // 1)).values if len(own) else own)
    return torch.cat(kept).mean()


def big_batch(network: nn.Module, images, masks, settings):
    """Value and gradient of the loss over all images at once."""
    masks = masks.long()
    logits = F.interpolate(
        network(pixel_values=images_to_input(images)).logits,
        masks.shape[1:],
        mode="bilinear",
        align_corners=False,
    )
    if "ohem" in settings:
        loss = hardest(logits, masks, settings["ohem"])
    else:
        weights = settings.get("class_weights")
        loss = F.cross_entropy(
            logits,
            masks,
            weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
            ignore_index=IGNORE,
            label_smoothing=settings.get("label_smoothing", 0.0),
        )
        if settings["loss_type"] == "ce_dice":
            loss = loss + dice_of_batch(logits, masks)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in network.named_parameters()}
