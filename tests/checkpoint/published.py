"""SegFormers as NVlabs and mmsegmentation publish them, written from their descriptions.

An oracle: it knows nothing of cocoseg or of transformers. `Published.layout` decides the names of
modules, how queries, keys and values are kept, and whether linear layers are 1×1 convolutions.
"""

import torch
from torch import nn
from torch.nn import functional as F

WIDTHS, HEADS, DECODER = (16, 32, 64, 128), (1, 2, 4, 8), 128
PATCHES, STRIDES, REDUCTIONS = (7, 3, 3, 3), (4, 2, 2, 2), (8, 4, 2, 1)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def image(x, size):
    return x.transpose(1, 2).reshape(x.shape[0], -1, *size)


def named(**modules):
    holder = nn.Module()
    for name, module in modules.items():
        holder.add_module(name, module)
    return holder


class ConvModule(nn.Module):
    """mmcv's: a convolution without a bias, a batch norm, a ReLU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


# --- NVlabs


class NvlabsAttention(nn.Module):
    def __init__(self, width, heads, reduction):
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x, size):
        batch, count, width = x.shape
        q = self.q(x).reshape(batch, count, self.heads, -1).transpose(1, 2)
        if hasattr(self, "sr"):
            x = self.norm(tokens(self.sr(image(x, size))))
        k, v = self.kv(x).reshape(batch, x.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(2, 3) / (width // self.heads) ** 0.5).softmax(3)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, count, width))


class NvlabsBlock(nn.Module):
    def __init__(self, width, heads, reduction):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = NvlabsAttention(width, heads, reduction)
        self.mlp = named(
            fc1=nn.Linear(width, 4 * width),
            dwconv=named(dwconv=nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)),
            fc2=nn.Linear(4 * width, width),
        )

    def forward(self, x, size):
        x = x + self.attn(self.norm1(x), size)
        wide = self.mlp.dwconv.dwconv(image(self.mlp.fc1(self.norm2(x)), size))
        return x + self.mlp.fc2(F.gelu(tokens(wide)))


class NvlabsBackbone(nn.Module):
    def __init__(self, depths, classes=0):
        super().__init__()
        inputs = (3, *WIDTHS)
        for i, width in enumerate(WIDTHS):
            proj = nn.Conv2d(inputs[i], width, PATCHES[i], STRIDES[i], PATCHES[i] // 2)
            self.add_module(f"patch_embed{i + 1}", named(proj=proj, norm=nn.LayerNorm(width)))
            blocks = [NvlabsBlock(width, HEADS[i], REDUCTIONS[i]) for _ in range(depths[i])]
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(width, eps=1e-6))
        if classes:
            self.head = nn.Linear(WIDTHS[-1], classes)  # of ImageNet

    def forward(self, x):
        levels = []
        for i in range(1, 5):
            embed = getattr(self, f"patch_embed{i}")
            x = embed.proj(x)
            size = x.shape[2:]
            x = embed.norm(tokens(x))
            for block in getattr(self, f"block{i}"):
                x = block(x, size)
            x = image(getattr(self, f"norm{i}")(x), size)
            levels.append(x)
        return levels


class Nvlabs(nn.Module):
    """Encoder and head of NVlabs' SegFormer."""

    def __init__(self, classes, depths=(1, 1, 1, 1)):
        super().__init__()
        self.backbone = NvlabsBackbone(depths)
        self.decode_head = named(
            conv_seg=nn.Conv2d(DECODER, classes, 1),  # of the base class, unused
            **{f"linear_c{i + 1}": named(proj=nn.Linear(w, DECODER)) for i, w in enumerate(WIDTHS)},
            linear_fuse=ConvModule(4 * DECODER, DECODER),
            linear_pred=nn.Conv2d(DECODER, classes, 1),
        )

    def forward(self, x):
        levels, head = self.backbone(x), self.decode_head
        size = levels[0].shape[2:]
        up = []
        for i in (4, 3, 2, 1):
            level = levels[i - 1]
            projected = getattr(head, f"linear_c{i}").proj(tokens(level))
            up.append(F.interpolate(image(projected, level.shape[2:]), size, mode="bilinear"))
        return head.linear_pred(head.linear_fuse(torch.cat(up, 1)))


# --- mmsegmentation


class MmsegAttention(nn.Module):
    def __init__(self, width, heads, reduction):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x, size):
        other = self.norm(tokens(self.sr(image(x, size)))) if hasattr(self, "sr") else x
        return self.attn(x, other, other, need_weights=False)[0]


class MmsegBlock(nn.Module):
    def __init__(self, width, heads, reduction):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = MmsegAttention(width, heads, reduction)
        self.ffn = named(
            layers=nn.Sequential(
                nn.Conv2d(width, 4 * width, 1),
                nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width),
                nn.GELU(),
                nn.Dropout(0.0),
                nn.Conv2d(4 * width, width, 1),
                nn.Dropout(0.0),
            )
        )

    def forward(self, x, size):
        x = x + self.attn(self.norm1(x), size)
        return x + tokens(self.ffn.layers(image(self.norm2(x), size)))


class MmsegBackbone(nn.Module):
    def __init__(self, depths):
        super().__init__()
        inputs = (3, *WIDTHS)
        self.layers = nn.ModuleList()
        for i, width in enumerate(WIDTHS):
            projection = nn.Conv2d(inputs[i], width, PATCHES[i], STRIDES[i], PATCHES[i] // 2)
            embed = named(projection=projection, norm=nn.LayerNorm(width, eps=1e-6))
            blocks = [MmsegBlock(width, HEADS[i], REDUCTIONS[i]) for _ in range(depths[i])]
            norm = nn.LayerNorm(width, eps=1e-6)
            self.layers.append(nn.ModuleList([embed, nn.ModuleList(blocks), norm]))

    def forward(self, x):
        levels = []
        for embed, blocks, norm in self.layers:
            x = embed.projection(x)
            size = x.shape[2:]
            x = embed.norm(tokens(x))
            for block in blocks:
                x = block(x, size)
            x = image(norm(x), size)
            levels.append(x)
        return levels


class Mmseg(nn.Module):
    """Encoder and head of mmsegmentation's SegFormer."""

    def __init__(self, classes, depths=(1, 1, 1, 1)):
        super().__init__()
        self.backbone = MmsegBackbone(depths)
        self.decode_head = named(
            conv_seg=nn.Conv2d(DECODER, classes, 1),
            convs=nn.ModuleList(ConvModule(width, DECODER) for width in WIDTHS),
            fusion_conv=ConvModule(4 * DECODER, DECODER),
        )

    def forward(self, x):
        levels, head = self.backbone(x), self.decode_head
        size = levels[0].shape[2:]
        up = [
            F.interpolate(conv(level), size, mode="bilinear")
            for conv, level in zip(head.convs, levels, strict=True)
        ]
        return head.conv_seg(head.fusion_conv(torch.cat(up, 1)))


def randomized(network, seed=0):
    """Draw all parameters and statistics so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(noise.abs() + 0.5)
            elif value.ndim > 1:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:  # biases around 0, gains around 1
                value.copy_(noise * 0.2 + ("bias" not in name and "mean" not in name))
    return network.eval()
