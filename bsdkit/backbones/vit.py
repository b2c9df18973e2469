"""The transformer layers of vision transformers, which audio ones over spectrograms share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["HEAD_DIM", "NORM_EPSILON", "vit_blocks"]

# no tensor tells these two: ViTs, small to large, have heads of 64 features, and those of DeiT
# and MAE, which PaSST and M2D build on, this epsilon
HEAD_DIM = 64
NORM_EPSILON = 1e-6


def vit_blocks(n: int, dim: int, n_heads: int, hidden_dim: int) -> nn.ModuleList:
    """Pre-norm layers (Dosovitskiy et al., ICLR 2021); keys are those of timm's ViT.

    Each maps tokens [batch, tokens, dim] to as many, or to the first ``n_out`` of them.

    Args:
        n: how many layers.
        dim: features of a token.
        n_heads: attention heads.
        hidden_dim: hidden features of the perceptron.
    """
    from torch import nn
    from torch.nn import functional

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(dim, 3 * dim)
            self.proj = nn.Linear(dim, dim)

        def forward(self, x: torch.Tensor, n_out: int | None) -> torch.Tensor:
            split = self.qkv(x).unflatten(2, (3, n_heads, -1))
            # each [batch, heads, tokens, dim / heads]
            query, key, value = split.permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(query[:, :, :n_out], key, value)
            out: torch.Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
            return out

    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(dim, hidden_dim)
            self.fc2 = nn.Linear(hidden_dim, dim)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc2(functional.gelu(self.fc1(x)))
            return out

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.LayerNorm(dim, eps=NORM_EPSILON)
            self.attn = Attention()
            self.norm2 = nn.LayerNorm(dim, eps=NORM_EPSILON)
            self.mlp = Perceptron()

        def forward(self, x: torch.Tensor, n_out: int | None = None) -> torch.Tensor:
            x = x[:, :n_out] + self.attn(self.norm1(x), n_out)
            out: torch.Tensor = x + self.mlp(self.norm2(x))
            return out

    return nn.ModuleList(Block() for _ in range(n))
