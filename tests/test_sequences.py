"""Seams of sequences [T, N, C, L] and of tokens [T, N, L, C], against the same as maps and as features."""

import pytest
import torch
from close import close64, same_bits
from torch import nn

from attsnn import attention, layers, neurons, ops

STEPS, SAMPLES, CHANNELS, LENGTH = 4, 3, 6, 5


def numbers(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).mul(2).to(dtype)


def gates_of(name, channels=CHANNELS):
    torch.manual_seed(1)
    return attention.attention(name, channels=channels, steps=STEPS, channel_ratio=2, temporal_ratio=2)


def neuron_of(backend, kind):
    torch.manual_seed(2)
    if kind == "channels":
        threshold = torch.rand(CHANNELS, dtype=torch.float64) + 0.2
        return neurons.LIF(leak=0.5, threshold=threshold, learn=("threshold",), backend=backend)
    return neurons.ms_resnet(threshold=0.2, backend=backend)


def norm_of(kind):
    torch.manual_seed(3)
    norm = nn.BatchNorm1d(CHANNELS).double() if kind else None
    if norm is not None:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return norm if kind != "eval" else norm.eval()


def with_gradients(layer, x, *more, transposed=False):
    """What the layer returns, and every gradient of a functional of it, by name."""
    x = x.clone().requires_grad_()
    found = layer.run(x, *more)
    shape = found.out.transpose(-1, -2).shape if transposed else found.out.shape
    draw = numbers(*shape, seed=9)
    draw = draw.transpose(-1, -2) if transposed else draw
    (found.out * draw).sum().backward()
    return found, {"x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


CASES = [(norm, gates) for norm in (None, "train", "eval") for gates in (None, "TA", "CA", "TCA")]


@pytest.mark.parametrize(("norm", "gates"), CASES)
@pytest.mark.parametrize("kind", ["one", "channels"])
def test_a_sequence_is_a_map_of_height_1(backend, norm, gates, kind):
    """Conv1d and no current, with every small tensor: the same layer of two dimensions."""
    torch.manual_seed(0)
    conv, flat = nn.Conv1d(2, CHANNELS, 3, padding=1).double(), nn.Conv2d(2, CHANNELS, (1, 3), padding=(0, 1))
    flat = flat.double()
    flat.weight.data, flat.bias.data = conv.weight.data[:, :, None].clone(), conv.bias.data.clone()
    for one, two, channels in ((conv, flat, 2), (None, None, CHANNELS)):
        parts = {"norm": norm_of(norm), "attention": gates_of(gates) if gates else None}
        sequences = layers.SpikingLayer(one, neuron_of(backend, kind), **parts).double()
        parts = {"norm": norm_of(norm), "attention": gates_of(gates) if gates else None}
        maps = layers.SpikingLayer(two, neuron_of(backend, kind), **parts).double()
        x = numbers(STEPS, SAMPLES, channels, LENGTH)
        r, v0 = (numbers(*shape, CHANNELS, LENGTH, seed=5) for shape in ((STEPS, SAMPLES), (SAMPLES,)))
        ours, grads = with_gradients(sequences, x, r, v0)
        theirs, wanted = with_gradients(maps, x.unsqueeze(3), r.unsqueeze(3), v0.unsqueeze(2))
        assert ours.out.shape == (STEPS, SAMPLES, CHANNELS, LENGTH) and ours.v.shape == ours.out.shape[1:]
        close64(ours.out, theirs.out.squeeze(3), 1e-12, "out")
        close64(ours.v, theirs.v.squeeze(2), 1e-12, "v")
        assert ours.out.any() and grads["x"].any()
        for name, grad in grads.items():
            close64(grad, wanted[name].view_as(grad), 1e-11, f"gradient of {name}")
        if norm == "train":
            close64(sequences.norm.running_var, maps.norm.running_var, 1e-12)
        for ours_, theirs_ in zip(ours.scores, theirs.scores, strict=True):
            assert (ours_ is None) == (theirs_ is None)


@pytest.mark.parametrize(("norm", "gates"), CASES)
@pytest.mark.parametrize("kind", ["one", "channels"])
def test_tokens_are_a_sequence_of_their_transpose(backend, norm, gates, kind):
    """Linear: norm, gates and per-channel constants follow the last dimension; and nothing is copied."""
    torch.manual_seed(0)
    linear, conv = nn.Linear(7, CHANNELS).double(), nn.Conv1d(7, CHANNELS, 1).double()
    conv.weight.data, conv.bias.data = linear.weight.data[:, :, None].clone(), linear.bias.data.clone()
    parts = {"norm": norm_of(norm), "attention": gates_of(gates) if gates else None}
    tokens = layers.SpikingLayer(linear, neuron_of(backend, kind), membrane=True, **parts).double()
    parts = {"norm": norm_of(norm), "attention": gates_of(gates) if gates else None}
    sequences = layers.SpikingLayer(conv, neuron_of(backend, kind), membrane=True, **parts).double()
    x = numbers(STEPS, SAMPLES, LENGTH, 7)
    r, v0 = (numbers(*shape, LENGTH, CHANNELS, seed=5) for shape in ((STEPS, SAMPLES), (SAMPLES,)))
    ours, grads = with_gradients(tokens, x, r, v0)
    given = (t.transpose(-1, -2) for t in (x, r, v0))
    theirs, wanted = with_gradients(sequences, *given, transposed=True)
    wanted["x"] = wanted["x"].transpose(-1, -2)
    for name in ("out", "membrane", "v"):
        mine = getattr(ours, name)
        close64(mine, getattr(theirs, name).transpose(-1, -2), 1e-11, name)
        assert backend == "reference" or mine.is_contiguous()
    for name, grad in grads.items():
        close64(grad, wanted[name].reshape(grad.shape), 1e-10, f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_copy_of_tokens(fused, dtype):
    """Between the linear layer and the spikes there are the ops of a seam and views."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.add(function._schema.name.split("::")[1])
            return function(*args, **(kwargs or {}))

    layer = layers.SpikingLayer(None, neurons.ms_resnet(backend="fused"), norm=nn.BatchNorm1d(6), tokens=True)
    x = numbers(4, 3, 5, 6, dtype=dtype)
    with Seen() as seen:
        layer(x)
    passes = {"seam_statistics", "lif_seam_forward", "update_running"}
    assert seen.names - {"detach"} == passes | (seen.names & {"transpose", "unsqueeze", "squeeze", "view"})


def test_features_and_one_token_agree(fused):
    """[T, N, F] is one token of F channels."""
    layer = layers.SpikingLayer(nn.Linear(7, 6), neuron_of("fused", "one"), norm=norm_of("eval")).double()
    x = numbers(STEPS, SAMPLES, 7)
    same_bits(layer(x[:, :, None]).squeeze(2), layer(x))


def test_sizes_and_types(fused):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for shape in ((2, 1, 3, 1), (2, 3, 1, 7), (1, 1, 1, 1), (2, 0, 3, 4), (70, 2, 3, 5)):
            z = numbers(*shape, dtype=dtype)
            for given in (z, z.transpose(2, 3).contiguous().transpose(2, 3)):
                found = ops.seam(
                    given,
                    norm=ops.Norm(mean=torch.zeros(shape[2]), var=torch.ones(shape[2])),
                    backend="fused",
                )
                plain = ops.seam(
                    given[:, :, :, None],
                    norm=ops.Norm(mean=torch.zeros(shape[2]), var=torch.ones(shape[2])),
                    backend="fused",
                )
                same_bits(found.out, plain.out.squeeze(3))
                same_bits(found.v, plain.v.squeeze(2))


def test_which_dimension_is_meant():
    neuron = neurons.leaky()
    mixed = nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 5), nn.Dropout(0.1))
    for current, tokens in (
        (nn.Linear(7, 5), True), (mixed, True), (nn.Conv1d(7, 5, 1), False), (None, False),
        (nn.Sequential(nn.Linear(7, 7), nn.Conv1d(7, 5, 1)), False), (nn.Identity(), False),
    ):  # fmt: skip
        assert layers.SpikingLayer(current, neuron).tokens is tokens
    assert layers.SpikingLayer(None, neuron, tokens=True).tokens


@pytest.mark.parametrize("name", ["SA", "CSA", "TCSA"])
def test_maps_alone_have_pixels(backend, name):
    x = numbers(STEPS, SAMPLES, CHANNELS, LENGTH)
    layer = layers.SpikingLayer(None, neuron_of(backend, "one"), attention=gates_of(name)).double()
    with pytest.raises(ValueError, match=r"gates: z \[T, N, C, L\] has no spatial gate"):
        layer(x)
    layer.attention.register_forward_hook(lambda *_: None)  # called, then
    with pytest.raises(ValueError, match="SA and PFA weigh the pixels of maps"):
        layer(x)


def test_what_sequences_do_not_have(backend):
    x, neuron = numbers(STEPS, SAMPLES, CHANNELS, LENGTH), neuron_of(backend, "one")
    with pytest.raises(ValueError, match=r"pool must be a side >= 1, and 1 for z \[T, N, C, L\]"):
        layers.SpikingLayer(None, neuron, pool=2)(x)
    pfa = attention.PFA(STEPS, CHANNELS, 2, backend=backend).double()
    with pytest.raises(ValueError, match="SA and PFA weigh the pixels of maps"):
        layers.SpikingLayer(None, neuron, attention=pfa)(x)
    with pytest.raises(ValueError, match=r"x must be \[T, N, C, L\], steps before samples"):
        layers.SpikingLayer(nn.Conv1d(6, 6, 3).double(), neuron)(x[0])
    tokens = layers.SpikingLayer(nn.Linear(LENGTH, 3).double(), neuron)
    with pytest.raises(ValueError, match=r"v0 must be tokens \(3, 6, 3\), got shape \(3, 3, 6\)"):
        tokens.run(x, v0=torch.zeros(3, 3, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"shortcut must be tokens \(4, 3, 6, 3\), got shape \(4, 3, 3, 6\)"):
        tokens.run(x, torch.zeros(4, 3, 3, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x must be \[T, N, F\] or tokens \[T, N, L, F\]"):
        layers.SpikingLayer(nn.Linear(5, 5).double(), neuron)(x[0, 0])


def test_a_norm_that_is_called_sees_channels(backend):
    """Of tokens, too: a norm with hooks, or of a stranger, gets [T N, C, L]."""
    shapes = []
    for current, shape in ((nn.Conv1d(7, CHANNELS, 1), (7, LENGTH)), (nn.Linear(7, CHANNELS), (LENGTH, 7))):
        layer = layers.SpikingLayer(current, neuron_of(backend, "one"), norm=norm_of("train")).double()
        x = numbers(STEPS, SAMPLES, *shape)
        expected = layer(x)
        layer.norm.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
        close64(layer(x), expected, 1e-12)
    assert shapes == [(STEPS * SAMPLES, CHANNELS, LENGTH)] * 2


def test_a_norm_alone_follows_the_channels(backend):
    """Of a layer without a neuron; L is C, so that no size could tell the two apart."""
    for current, shape in ((nn.Linear(7, LENGTH), (LENGTH, 7)), (nn.Conv1d(7, LENGTH, 1), (7, LENGTH))):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(LENGTH)
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
        layer = layers.NormedLayer(current, norm, backend=backend).double()
        x = numbers(STEPS, SAMPLES, *shape)
        z = current(x.flatten(0, 1))
        linear = isinstance(current, nn.Linear)
        wanted = norm(z.transpose(1, 2)).transpose(1, 2) if linear else norm(z)
        close64(layer(x), wanted.view(STEPS, SAMPLES, LENGTH, LENGTH), 1e-12)


def test_static_tokens_and_single_steps(backend):
    layer = layers.SpikingLayer(nn.Linear(7, CHANNELS), neuron_of(backend, "channels"), norm=norm_of("eval"))
    layer = layer.double().eval()
    x = numbers(1, SAMPLES, LENGTH, 7)
    whole = layer.run(x.expand(4, -1, -1, -1))
    out, v = layer(x, steps=4, final_state=True)
    close64(out, whole.out, 1e-12)
    close64(v, whole.v, 1e-12)
    state = None
    for t in range(4):
        emitted, state = layer.step(x[0], state)
        close64(emitted, whole.out[t], 1e-12)
    close64(state, whole.v, 1e-12)


def test_norms_of_tokens_fold(fused):
    for current, shape in ((nn.Conv1d(7, CHANNELS, 3), (7, 9)), (nn.Linear(7, CHANNELS), (9, 7))):
        layer = (
            layers.SpikingLayer(current, neuron_of("fused", "channels"), norm=norm_of("eval")).double().eval()
        )
        x = numbers(STEPS, SAMPLES, *shape)
        close64(layers.fold(layer)(x), layer(x), 1e-10)


def test_a_bare_neuron_stays_at_dimension_2():
    neuron = neurons.LIF(threshold=torch.rand(CHANNELS))
    assert neuron(numbers(2, 3, CHANNELS, 4, dtype=torch.float32)).shape == (2, 3, CHANNELS, 4)
    with pytest.raises(ValueError, match=r"\[C\] = \[4\], the size of dimension 2"):
        neuron(numbers(2, 3, 4, CHANNELS, dtype=torch.float32))
