"""torch.vmap over every operand, and transforms that use it, against a loop."""

import itertools

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import tricorr
from tricorr.autograd.function import correlate, input_gradient, weight_gradient
from tricorr.ops import geometry_of

B = 3
SAME = ((1, 0), (0, 2))
GEOMETRIES = {
    "one_sample": geometry_of((1, 2, 4, 3), (4, 2, 2, 2), padding=SAME),
    "samples": geometry_of((2, 2, 4, 3), (4, 2, 2, 2), (2, 1), SAME),
    "samples_in_groups": geometry_of((2, 4, 4, 3), (4, 2, 2, 2), groups=2, flip=True),
    "bank_per_sample": geometry_of((2, 2, 4, 3), (2, 4, 1, 2, 2), groups=2),
    "reflected": geometry_of((2, 2, 4, 3), (4, 1, 2, 2), padding=SAME, groups=2,
                             padding_mode="reflect"),
}  # fmt: skip


def batched(shape, dim, device, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = list(shape)
    if dim is not None:
        shape.insert(dim, B)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(device)


def loop(function, dims, operands):
    return torch.stack(
        [
            function(
                *(t if d is None else t.select(d, i) for t, d in zip(operands, dims, strict=True))
            )
            for i in range(B)
        ]
    )


OPERATORS = {
    "fprop": lambda g: (
        lambda x, weight, bias: correlate(x, weight, bias, g, "ieee", "silu"),
        (g.x_shape, g.weight_shape, (g.K,)),
    ),
    "dgrad": lambda g: (
        lambda dy, weight, bias: input_gradient(dy, weight, g, "ieee", bias),
        (g.y_shape, g.weight_shape, (g.C,)),
    ),
    "wgrad": lambda g: (lambda x, dy: weight_gradient(x, dy, g, "ieee"), (g.x_shape, g.y_shape)),
}


@pytest.mark.parametrize("backend", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("op", OPERATORS)
def test_every_combination_of_batched_operands_equals_a_loop(backend, op, name):
    function, shapes = OPERATORS[op](GEOMETRIES[name])
    # Dimension 0 and the last one: a batch may lie anywhere.
    for dims in itertools.product(*([None, 0, len(shape)] for shape in shapes)):
        if all(dim is None for dim in dims):
            continue
        operands = [
            batched(shape, dim, backend.device, seed)
            for seed, (shape, dim) in enumerate(zip(shapes, dims, strict=True))
        ]
        actual = vmap(function, dims)(*operands)
        torch.testing.assert_close(actual, loop(function, dims, operands))


@pytest.mark.parametrize("name", ["samples", "one_sample"])
def test_batched_weights_reach_the_kernels(kernel_backend, name):
    function, shapes = OPERATORS["fprop"](GEOMETRIES[name])
    operands = [batched(s, 0, kernel_backend.device, i) for i, s in enumerate(shapes)]
    actual = vmap(function)(*operands)
    torch.testing.assert_close(actual, loop(function, (0, 0, 0), operands))


def test_gradients_per_sample_are_those_of_a_loop(backend):
    layer = tricorr.Conv2D(2, 3, 2, padding=1, dtype=torch.float64, device=backend.device)
    images = batched((2, 4, 3), 0, backend.device, 0)

    def loss(parameters, image):
        return functional_call(layer, parameters, (image[None],)).pow(2).sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    per_sample = vmap(grad(loss), (None, 0))(parameters, images)
    for i, image in enumerate(images):
        for name, expected in grad(loss)(parameters, image).items():
            torch.testing.assert_close(per_sample[name][i], expected)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_vmap_in_vmap(backend):
    images = torch.randn(2, B, 2, 4, 3, dtype=torch.float64)
    weights = torch.randn(B, 3, 2, 2, 2, dtype=torch.float64)
    both = vmap(vmap(tricorr.corr2d, (0, None)), (1, 0))(images, weights)
    for i, j in itertools.product(range(B), range(2)):
        torch.testing.assert_close(both[i, j], tricorr.corr2d(images[j, i], weights[i]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_jacobians_hessians_and_tangents_equal_pytorchs(backend, activation):
    image = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    weight = torch.randn(2, 1, 2, 2, dtype=torch.float64)

    def ours(weight):
        return tricorr.corr2d(image, weight, activation=activation).pow(2).sum()

    def theirs(weight):
        z = torch.nn.functional.conv2d(image, weight)
        return (torch.nn.functional.gelu(z) if activation == "gelu" else z).pow(2).sum()

    for transform in (jacrev, jacfwd, hessian, lambda f: jacrev(jacrev(f))):
        torch.testing.assert_close(transform(ours)(weight), transform(theirs)(weight))
    tangent = torch.randn_like(weight)
    for a, b in zip(
        jvp(ours, (weight,), (tangent,)), jvp(theirs, (weight,), (tangent,)), strict=True
    ):
        torch.testing.assert_close(a, b)


COMPILED = {
    "grad": lambda op, w: grad(lambda x: op(x, w).square().sum()),
    "jvp": lambda op, w: lambda x: jvp(lambda x: op(x, w), (x,), (x + 1,))[1],
    "vmap": lambda op, w: vmap(lambda x: op(x[None], w)),
    "vmap_of_grad": lambda op, w: vmap(grad(lambda x: op(x[None], w).square().sum())),
}


@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("name", COMPILED)
def test_transforms_inside_a_compiled_function_are_right(backend, name):
    torch._dynamo.reset()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    weight = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    compiled = torch.compile(COMPILED[name](tricorr.corr2d, weight), backend="aot_eager")
    expected = COMPILED[name](torch.nn.functional.conv2d, weight)(x)
    torch.testing.assert_close(compiled(x), expected)
