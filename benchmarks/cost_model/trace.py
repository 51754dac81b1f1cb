# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What one forward pass of a denoiser does, read off the model itself: its matrix products, its attention, and what it keeps
for the backward pass. A model of full size runs on fake tensors, which have shapes and no values.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple
from unittest.mock import patch
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from peft import PeftModel
from torch.utils._pytree import tree_leaves, tree_map_only


# CUDA's autocast runs these in fp32, and the CPU's does not: https://docs.pytorch.org/docs/stable/amp.html
CUDA_FLOAT32 = ("group_norm", "layer_norm", "rms_norm", "softmax")


class Product(NamedTuple):
    """
    A matrix product with weights: a linear layer, or a convolution as the product it is.

    Attributes:
        rows (`int`):
            Rows of its output: tokens or positions, of all images of the batch.
        inputs (`int`):
            Over how many elements each number of the output is a sum.
        outputs (`int`):
            Columns of its output.
        weight_bytes (`int`):
            Bytes of its weights, as they are stored.
        input_gradient, weight_gradient (`bool`):
            Whether the backward pass computes the gradient of its input, and of its weights.
        trained (`bool`):
            Whether its weights are LoRA's.
        recomputed (`bool`):
            Whether gradient checkpointing computes it a second time.
    """

    rows: int
    inputs: int
    outputs: int
    weight_bytes: int
    input_gradient: bool
    weight_gradient: bool
    trained: bool
    recomputed: bool = False


class Attention(NamedTuple):
    """
    Attention of `queries` to `keys` tokens, of `dim` features a head, in `heads` heads over all images of the batch.
    `gradients` says whether the backward pass computes those of queries, keys and values.
    """

    heads: int
    queries: int
    keys: int
    dim: int
    gradients: tuple[bool, bool, bool]
    recomputed: bool = False


@dataclass
class Trace:
    """
    What one forward pass does.

    Attributes:
        products (`list[Product]`), attentions (`list[Attention]`):
            In the order in which they run.
        kept (`dict[int | None, int]`):
            Bytes that autograd keeps for the backward pass, weights apart, by number of the checkpointed block; `None` is
            outside of blocks.
        block_inputs (`list[int]`):
            Bytes that each checkpointed block keeps instead, apart from what a block before it keeps.
    """

    products: list[Product]
    attentions: list[Attention]
    kept: dict[int | None, int]
    block_inputs: list[int]


class _Recorder:
    def __init__(self, model: torch.nn.Module):
        self.products, self.attentions = [], []  # with the autograd node of the output, and the block
        self.block, self.block_inputs = None, []
        self.kept = WeakKeyDictionary()  # block by storage; what autograd drops again goes from here, too
        self.weights = WeakSet(  # and constants, such as tables of positions
            value.untyped_storage()
            for module in model.modules()
            for own in (module._parameters, module._buffers, vars(module))
            for value in own.values()
            if isinstance(value, torch.Tensor)
        )
        self.inputs_known = WeakSet(self.weights)
        self.last_saved = {}

    def product(self, module: torch.nn.Module, args: tuple, output: torch.Tensor):
        weight = module.weight
        outputs = weight.shape[0]
        product = Product(
            rows=output.numel() // outputs,
            inputs=math.prod(weight.shape[1:]),
            outputs=outputs,
            weight_bytes=weight.numel() * weight.element_size(),
            input_gradient=args[0].requires_grad,
            weight_gradient=weight.requires_grad,
            trained=weight.requires_grad,
        )
        self.products.append((product, output.grad_fn, self.block))

    def attention(self, output: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args, **_):
        gradients = tuple(tensor.requires_grad for tensor in (query, key, value))
        *heads, queries, dim = query.shape
        attention = Attention(math.prod(heads), queries, key.shape[-2], dim, gradients)
        self.attentions.append((attention, output.grad_fn, self.block))

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage not in self.weights:
            self.kept.setdefault(storage, self.block)
        # Recomputing a block stops here: what follows is not needed
        self.last_saved[self.block] = (len(self.products), len(self.attentions))
        return tensor

    def run_block(self, block: torch.nn.Module, *args) -> Any:
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        storages = {tensor.untyped_storage() for tensor in tensors}
        self.block_inputs.append(sum(s.nbytes() for s in storages if s not in self.inputs_known))
        self.inputs_known.update(storages)
        self.block = len(self.block_inputs) - 1
        try:
            return block(*args)
        finally:
            self.block = None

    def finish(self, output: Any) -> Trace:
        nodes = _reachable(leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))

        def recomputed(number: int, block: int | None, kind: int) -> bool:
            return block is not None and number < self.last_saved.get(block, (0, 0))[kind]

        products = [
            product._replace(
                input_gradient=product.input_gradient and node in nodes,
                weight_gradient=product.weight_gradient and node in nodes,
                recomputed=recomputed(number, block, 0),
            )
            for number, (product, node, block) in enumerate(self.products)
        ]
        attentions = [
            attention._replace(
                gradients=tuple(gradient and node in nodes for gradient in attention.gradients),
                recomputed=recomputed(number, block, 1),
            )
            for number, (attention, node, block) in enumerate(self.attentions)
        ]
        for nodes_held in (self.products, self.attentions):
            nodes_held.clear()  # what does not lead to the output goes with its nodes, and what these kept
        kept = defaultdict(int)
        for storage, block in self.kept.items():
            kept[block] += storage.nbytes()
        return Trace(products, attentions, kept, self.block_inputs)


def _reachable(nodes: Iterable) -> set:
    """Nodes of the backward pass that begins at some."""
    found, waiting = set(), [node for node in nodes if node is not None]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions if following is not None]
    return found


def _in_float32(function: Callable) -> Callable:
    def as_float32(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

    @wraps(function)
    def run(*args, **kwargs):
        args, kwargs = tree_map_only(torch.Tensor, as_float32, (args, kwargs))
        return function(*args, **kwargs)

    return run


@contextmanager
def like_cuda(dtype: torch.dtype | None) -> Iterator[None]:
    """Within it operations on the CPU run in the dtypes that CUDA's autocast gives them."""
    if dtype is None:
        yield
        return
    patched = {name: _in_float32(getattr(F, name)) for name in CUDA_FLOAT32}
    with patch.multiple(F, **patched), torch.autocast("cpu", dtype):
        yield


@contextmanager
def _attention_seen(see: Callable) -> Iterator[None]:
    attend = F.scaled_dot_product_attention

    @wraps(attend)
    def run(*args, **kwargs):
        output = attend(*args, **kwargs)
        see(output, *args, **kwargs)
        return output

    with patch.object(F, "scaled_dot_product_attention", run):
        yield


def trace(
    model: torch.nn.Module, inputs: dict, dtype: torch.dtype | None = None, call: Callable | None = None
) -> Trace:
    """
    Runs a forward pass and returns what it does. Leaves gradient checkpointing off.

    Args:
        model (`torch.nn.Module`):
            A denoiser with its LoRA, or another model.
        inputs (`dict`):
            What it is called with.
        dtype (`torch.dtype`, *optional*):
            Dtype of mixed precision, by CUDA's rules.
        call (`Callable`, *optional*):
            What to call, if not the model itself.
    """
    recorder = _Recorder(model)
    handles = [
        module.register_forward_hook(recorder.product)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d)
    ]
    if isinstance(model, PeftModel):
        model = model.get_base_model()
        model.train()
        model.enable_gradient_checkpointing(recorder.run_block)
    try:
        with (
            like_cuda(dtype),
            _attention_seen(recorder.attention),
            torch.autograd.graph.saved_tensors_hooks(recorder.keep, lambda tensor: tensor),
        ):
            output = (call or model)(**inputs)
    finally:
        for handle in handles:
            handle.remove()
        if isinstance(model, ModelMixin) and model.is_gradient_checkpointing:
            model.disable_gradient_checkpointing()
    return recorder.finish(output)
