"""Operations between pixels and prompt embeddings, one file each, in the order of the data flow."""

from pixelrefer_fast.ops._registry import BACKENDS, BackendError, Op, check_backend, kernels_serve, registry
from pixelrefer_fast.ops.add_norm import add_norm
from pixelrefer_fast.ops.best_token import best_token
from pixelrefer_fast.ops.infuse import infuse
from pixelrefer_fast.ops.linear_gelu import linear_gelu
from pixelrefer_fast.ops.mask_grids import mask_grids
from pixelrefer_fast.ops.norm_linear import norm_linear
from pixelrefer_fast.ops.object_pool import object_pool
from pixelrefer_fast.ops.object_tokens import object_tokens
from pixelrefer_fast.ops.pack_masks import pack_masks
from pixelrefer_fast.ops.pack_objects import pack_objects
from pixelrefer_fast.ops.pack_views import pack_views
from pixelrefer_fast.ops.paged_attention import paged_attention
from pixelrefer_fast.ops.place_patches import place_patches
from pixelrefer_fast.ops.rope2d import rope2d
from pixelrefer_fast.ops.scatter_tokens import gather_tokens, scatter_tokens
from pixelrefer_fast.ops.swiglu import swiglu
from pixelrefer_fast.ops.varlen_attention import varlen_attention
from pixelrefer_fast.ops.view_patches import view_patches

__all__ = [
    "BACKENDS",
    "BackendError",
    "Op",
    "add_norm",
    "best_token",
    "check_backend",
    "gather_tokens",
    "infuse",
    "kernels_serve",
    "linear_gelu",
    "mask_grids",
    "norm_linear",
    "object_pool",
    "object_tokens",
    "pack_masks",
    "pack_objects",
    "pack_views",
    "paged_attention",
    "place_patches",
    "registry",
    "rope2d",
    "scatter_tokens",
    "swiglu",
    "varlen_attention",
    "view_patches",
]
