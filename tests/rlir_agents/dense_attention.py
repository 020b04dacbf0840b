"""Attention between frames as the reference page writes it, with one mask for everything; ours has no masks."""

import torch
from torch import Tensor

from rlir_agents.world_models.frame_attention import FrameLayout


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: FrameLayout, sees_own_clean_copy: bool = False
) -> Tensor:
    """The reference page's mask (section 4.2), all copies by all copies, through torch's own attention."""
    frame = torch.tensor(layout.frame_index)
    is_clean = torch.zeros(len(frame), dtype=torch.bool)
    is_clean[layout.clean_copies] = True
    is_past = frame[:, None] >= frame if sees_own_clean_copy else frame[:, None] > frame
    is_visible = (is_clean & is_past) | torch.eye(len(frame), dtype=torch.bool)
    num_tokens = query.shape[3]
    mask = is_visible.repeat_interleave(num_tokens, 0).repeat_interleave(num_tokens, 1)
    flat = (tensor.flatten(2, 3) for tensor in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*flat, attn_mask=mask, scale=1.0).view_as(query)
