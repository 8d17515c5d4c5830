"""torch_npu's fused operators on the CPU, as op-plugin documents them: for the fake npu, and over the stub of CANN.

Each refuses what the documentation excludes.  Sources: the docstrings of torch_npu 2.13.0 (``_op_plugin_docs.py``), and
the shapes of its meta functions.
"""

import torch
import torch.nn.functional as F

INT = 2147483647
SCHEMAS = [
    "npu_add_layer_norm(Tensor x1, Tensor x2, Tensor gamma, Tensor beta, float epsilon=1e-05, "
    "bool additional_output=False) -> (Tensor, Tensor, Tensor, Tensor)",
    "npu_fusion_attention(Tensor query, Tensor key, Tensor value, int head_num, str input_layout, Tensor? pse=None, "
    "Tensor? padding_mask=None, Tensor? atten_mask=None, float scale=1., float keep_prob=1., "
    f"int pre_tockens={INT}, int next_tockens={INT}, int inner_precise=0) "
    "-> (Tensor, Tensor, Tensor, Tensor, int, int, int)",
    "npu_group_norm_silu(Tensor input, Tensor? weight, Tensor? bias, int group, float eps=1e-05) "
    "-> (Tensor, Tensor, Tensor)",
    "npu_ffn(Tensor x, Tensor weight1, Tensor weight2, str activation, *, Tensor? bias1=None, Tensor? bias2=None, "
    "int? inner_precise=None) -> Tensor",
]
"""Those of torch_npu 2.13.0, without the arguments that the references do not know."""


def npu_add_layer_norm(x1, x2, gamma, beta, epsilon=1e-5, additional_output=False):
    """Return the norm of x1 + x2, its mean, the reciprocal of its deviation, and x1 + x2."""
    _same_dtype(x1, x2)
    total = x1.float() + x2.float()
    mean = total.mean(-1, keepdim=True)
    rstd = (total.var(-1, correction=0, keepdim=True) + epsilon).rsqrt()
    normalized = (total - mean) * rstd * gamma.float() + beta.float()
    return normalized.to(x1.dtype), mean, rstd, total.to(x1.dtype) if additional_output else torch.empty_like(x1)


def npu_fusion_attention(query, key, value, head_num, input_layout, pse=None, padding_mask=None, atten_mask=None,
                         scale=1.0, keep_prob=1.0, pre_tockens=INT, next_tockens=INT, inner_precise=0):  # fmt: skip
    """Return softmax(scale * (pse + query key^T)) value, and what the backward pass would need; SBH without a mask."""
    _same_dtype(query, key, value, *[t for t in [pse] if t is not None])
    if input_layout != "SBH" or atten_mask is not None or padding_mask is not None or keep_prob != 1:
        raise NotImplementedError("the reference has SBH without mask and dropout alone")
    if key.shape != value.shape or query.shape[1:] != key.shape[1:]:
        raise RuntimeError(f"npu_fusion_attention: shapes {query.shape}, {key.shape}, {value.shape}")
    frames, slots, width = query.shape
    if pse is not None and pse.shape != (slots, head_num, frames, len(key)):
        raise RuntimeError(f"npu_fusion_attention: pse is {tuple(pse.shape)}, not BNSS")
    q, k, v = (t.float().unflatten(-1, (head_num, -1)).permute(1, 2, 0, 3) for t in (query, key, value))
    scores = q @ k.transpose(2, 3)
    scores = scale * (scores if pse is None else pse.float() + scores)
    attended = scores.softmax(-1) @ v
    largest = scores.amax(-1, keepdim=True)
    total = (scores - largest).exp().sum(-1, keepdim=True)
    kept = (t.expand(*t.shape[:-1], 8).contiguous() for t in (largest, total))
    attended = attended.permute(2, 0, 1, 3).reshape(frames, slots, width).to(query.dtype)
    return attended, *kept, query.new_empty(0), 0, 0, 0


def npu_group_norm_silu(input, weight, bias, group, eps=1e-5):
    """Return silu of the group norm, the means, and the reciprocals of the deviations, all in the input's dtype."""
    _same_dtype(weight, bias)
    if input.dim() < 2 or input.shape[1] % group or len(weight) != input.shape[1]:
        raise RuntimeError(f"npu_group_norm_silu: {tuple(input.shape)} in {group} groups, {len(weight)} weights")
    grouped = input.float().reshape(len(input), group, -1)
    normalized = F.group_norm(input.float(), group, weight.float(), bias.float(), eps)
    rstd = (grouped.var(-1, correction=0) + eps).rsqrt()
    return tuple(t.to(input.dtype) for t in (F.silu(normalized), grouped.mean(-1), rstd))


def npu_ffn(x, weight1, weight2, activation, *, bias1=None, bias2=None, inner_precise=None):
    """Return activation(x W1 + b1) W2 + b2, summed in float32."""
    _same_dtype(x, weight1, weight2)
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError(f"npu_ffn: {x.dtype} is not supported")
    if x.dtype == torch.bfloat16 and inner_precise not in (None, 0):
        raise RuntimeError("npu_ffn: bfloat16 is of high precision only")
    for bias in (bias1, bias2):
        wanted = torch.float32 if x.dtype == torch.bfloat16 else torch.float16
        if bias is not None and bias.dtype != wanted:
            raise RuntimeError(f"npu_ffn: a bias of {bias.dtype} for {x.dtype}")
    if activation != "silu" or x.shape[-1] != weight2.shape[-1] or weight1.shape[::-1] != weight2.shape:
        raise RuntimeError(f"npu_ffn: {activation}, {tuple(weight1.shape)}, {tuple(weight2.shape)}")
    y = x.float() @ weight1.float()
    y = F.silu(y if bias1 is None else y + bias1.float()) @ weight2.float()
    return (y if bias2 is None else y + bias2.float()).to(x.dtype)


def _same_dtype(*tensors):
    if len({t.dtype for t in tensors}) > 1:
        raise RuntimeError(f"a fused operator got {', '.join(str(t.dtype) for t in tensors)}")


REFERENCES = {f"npu::{f.__name__}": f for f in (npu_add_layer_norm, npu_fusion_attention, npu_group_norm_silu, npu_ffn)}
