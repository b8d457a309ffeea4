"""Compares a function's values, first and second gradients with PyTorch's in float64."""

import torch
from closeness import assert_close_to_reference, to_numpy


def assert_same_derivatives(ours, theirs, tensors, order=2, peer=False):
    """Fail unless ours(*tensors) and its gradients are those of theirs(*tensors) in float64.

    Args:
        ours, theirs: functions of the tensors that sum products of their elements. The result of
            theirs for absolute values bounds the rounding errors.
        tensors: the derivatives are with respect to these.
        order: 0 compares values only, 1 also gradients, 2 also gradients of the gradients.
        peer: allow twice PyTorch's error in the same dtype, for ours that PyTorch computes.
    """
    exact = [t.detach().cpu().double() for t in tensors]
    actual = _values(ours, tensors, order)
    truth = _values(theirs, exact, order)
    absolute = _values(theirs, [t.abs() for t in exact], order, torch.abs)
    peers = _values(theirs, tensors, order) if peer else dict.fromkeys(actual)
    # An element is a sum of at most this number of products.
    terms = truth["y"].numel() + sum(t.numel() for t in tensors)
    for name, result in actual.items():
        try:
            assert_close_to_reference(
                result, to_numpy(truth[name]), to_numpy(absolute[name]), terms, peer=peers[name]
            )
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def direction(like):
    """A cotangent for `like`, the same for every dtype and device: multiples of 1/8 up to 1."""
    generator = torch.Generator().manual_seed(like.numel())
    return (torch.randint(-8, 9, like.shape, generator=generator) / 8).to(like)


def _values(function, tensors, order, sign=torch.positive):
    leaves = [t.detach().requires_grad_(order > 0) for t in tensors]
    y = function(*leaves)
    values = {"y": y}
    if order > 0:
        dy = sign(direction(y)).requires_grad_(order > 1)
        first = torch.autograd.grad(y, leaves, dy, create_graph=order > 1)
        values |= {f"gradient {i}": grad for i, grad in enumerate(first)}
    if order > 1:
        along = [sign(direction(grad)) for grad in first]
        second = torch.autograd.grad(first, (*leaves, dy), along, materialize_grads=True)
        values |= {f"second gradient {i}": grad for i, grad in enumerate(second)}
    return values
