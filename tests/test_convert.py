"""The converter's families of projected full attention and Att-VGG (test_models.py and test_ms_resnet.py have
the others): round trips through published names, what is inferred, what is refused.
"""

import argparse

import pytest
import test_models
import test_ms_resnet
import torch
from close import same_bits
from safetensors import safe_open
from torch import nn

from attsnn import models, neurons
from attsnn.attention import PFA
from attsnn.layers import NormedLayer, SpikingLayer
from attsnn.models import convert
from attsnn.models.att_vgg import PLANS
from attsnn.models.convert import from_spikingjelly
from attsnn.models.convert.__main__ import cli

PARTS = {"spatial": "TS_conv", "temporal": "TC_FC", "channel": "SC_FC"}
EVENTS = {  # name -> keywords of a small one
    "pfa_vgg_cifar10_dvs": {"steps": 3, "rank": 2},
    "pfa_vgg_ncaltech101": {"steps": 2, "rank": 5},
    "pfa_vgg_dvs_gesture": {"steps": 2, "rank": 3, "size": 32},
    "pfa_vgg_dvs_gesture, released": {"steps": 2, "rank": 3, "size": 48, "parity": True},
    "pfa_vgg_dvs_gesture, released, of rank 64": {"steps": 2, "rank": 64, "size": 16, "parity": True},
}


# ---- our weights under the published names: the converter's inverse, written out by hand
# ------------------------------------------------------------------------------------------


def published_pfa(state, ours="", theirs="") -> dict:
    named = {
        f"{theirs}{PARTS[part]}.{leaf}": f"{ours}{part}_{leaf}"
        for part in PARTS
        for leaf in ("weight", "bias")
    }
    return {key: state[name] for key, name in named.items()}


def published_layer(state, ours, conv, norm) -> dict:
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{conv}.weight": state[f"{ours}.current.weight"]} | {
        f"{norm}.{leaf}": state[f"{ours}.norm.{leaf}"] for leaf in leaves
    }


def published_events(model, weighted=True) -> dict:
    """In the published order: spec 10."""
    state, down = model.state_dict(), int(model.plan.size is not None)
    gates = ["attention.", *(f"stages.{i}.attention." for i in range(4))]
    places = dict(zip((1, 7, 13, 19, 25), gates, strict=True))
    layers = [f"stages.{i}.{part}" for i in range(4) for part in ("first", "second")]
    places |= dict(zip((2, 4, 8, 10, 14, 16, 20, 22), layers, strict=True))
    out = {}
    for place, ours in sorted(places.items()):
        theirs = f"conv.{place - down}"
        if ours in gates:
            out |= {f"{theirs}.weight": torch.ones(model.plan.rank)} if weighted else {}
            out |= published_pfa(state, ours, f"{theirs}.")
        else:
            out |= published_layer(state, ours, f"{theirs}.0", f"{theirs}.1")
    return out | {f"fc.1.0.{leaf}": state[f"classifier.current.{leaf}"] for leaf in ("weight", "bias")}


def published_fmnist(model) -> dict:
    state = model.state_dict()
    out = published_layer(state, "stem", "static_conv.0", "static_conv.1")
    out |= published_layer(state, "features", "conv.1.1", "conv.1.2")
    out |= published_pfa(state, "features.attention.", "conv.2.")
    out["fc.1.0.weight"] = state["hidden.current.weight"]
    return out | {"fc.4.0.weight": state["classifier.current.weight"]}


def published_vgg(model) -> dict:
    """Four places a convolution with attention, three without, one a pool: spec 8."""
    state, plan, out, place, at = model.state_dict(), model.plan, {}, 0, -1
    for i in range(len(plan.channels)):
        ours = f"features.{at}" if i else "stem"
        conv = f"{ours}.current.conv" if plan.attention else f"{ours}.current"
        out |= {f"features.{place}.{leaf}": state[f"{conv}.{leaf}"] for leaf in ("weight", "bias")}
        if plan.attention:
            gates = f"{ours}.current.attention"
            for number, part in (("0", "reduce"), ("2", "expand")):
                weight = state[f"{gates}.channel.{part}.weight"]
                out[f"features.{place + 1}.ca.sharedMLP.{number}.weight"] = weight[..., None, None, None]
            out[f"features.{place + 1}.sa.conv.weight"] = state[f"{gates}.spatial.conv.weight"]
        norm = place + (2 if plan.attention else 1)
        out |= {
            f"features.{norm}.{leaf}": state[f"{ours}.norm.{leaf}"]
            for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        }
        pooled = i in plan.pools
        place, at = norm + 2 + pooled, at + 1 + pooled
    for theirs, ours in (("classifier.0", "hidden.current"), ("classifier.3", "classifier")):
        out |= {f"{theirs}.{leaf}": state[f"{ours}.{leaf}"] for leaf in ("weight", "bias")}
    return out


def small(name, **keywords):
    return models.create(name.split(",")[0], width=0.0625, **keywords)


def fmnist(**keywords):
    return small("pfa_fmnist", steps=3, rank=2, **keywords)


def vgg(name="att_vgg11", **keywords):
    return small(name, channel_ratio=4, **keywords)


def shapes(state) -> dict:
    return {key: tuple(value.shape) for key, value in state.items()}


# ---- round trips
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVENTS)
def test_event_networks(name):
    """Which of the three, steps, rank, size and channels are in the file; the order of the keys is kept."""
    with torch.device("meta"):
        model = small(name, **EVENTS[name])
        theirs = published_events(model)
    checkpoint = {"net_parameters": theirs, "epoch": 3, "best_accuracy": 0.7, "optimizer_name": "Adam"}
    state, kwargs = convert.recognise(checkpoint, "pfa_vgg")
    assert list(state) == list(model.state_dict()) and shapes(state) == shapes(model.state_dict())
    plan, wanted = model.plan, EVENTS[name]
    assert kwargs == {
        "name": name.split(",")[0],
        "num_classes": plan.classes,
        "steps": plan.steps,
        "rank": plan.rank,
        "channels": plan.channels,
        "scale": "mean",
        "fusion": "multiply",
    } | ({"size": wanted["size"], "parity": plan.parity} if "size" in wanted else {})


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("attention", ["CSA", None])
def test_att_vgg(name, attention):
    """Every depth, with and without attention, is found by its keys."""
    with torch.device("meta"):
        model = vgg(name, attention=attention, num_classes=7)
        state, kwargs = convert.recognise({"model": published_vgg(model)}, "att_vgg")
    assert shapes(state) == shapes(model.state_dict())
    ratio = {"channel_ratio": 4} if attention else {}
    sizes = {"channels": model.plan.channels, "hidden": model.plan.hidden}
    assert kwargs == {"name": name, "attention": attention, "num_classes": 7, **sizes, **ratio}


def test_fmnist():
    model = fmnist(num_classes=5, hidden=320)
    state, kwargs = convert.recognise({"net": published_fmnist(model), "max_test_acc": 0.9}, "pfa_fmnist")
    assert list(state) == list(model.state_dict())
    assert kwargs == {
        "name": "pfa_fmnist",
        **{"steps": 3, "rank": 2, "num_classes": 5, "channels": 8, "hidden": 20},
    }


@pytest.mark.parametrize("kernel", [1, 3])
def test_module(kernel):
    """With its rank weight, of the released code on event data."""
    module = PFA(5, 6, 3, kernel=kernel)
    theirs = {"module.weight": torch.ones(3), **published_pfa(module.state_dict(), theirs="module.")}
    state, kwargs = convert.recognise(theirs, "pfa")
    assert kwargs == {
        **{"steps": 5, "channels": 6, "rank": 3, "kernel": kernel},
        **{"scale": "mean", "fusion": "multiply"},
    }
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert list(state) == list(module.state_dict())


def test_files(tmp_path, capsys):
    """Published files -> command line -> safetensors -> strict load: the same networks."""
    arguments = argparse.Namespace(model="spiking_vgg7_bn", batch_size=64, device="cuda")
    event, image = small("pfa_vgg_dvs_gesture", **EVENTS["pfa_vgg_dvs_gesture, released"]), vgg("att_vgg7")
    for family, model, checkpoint, x in (
        ("pfa_vgg", event, {"net_parameters": published_events(event)}, torch.rand(2, 2, 2, 48, 48)),
        ("att_vgg", image, {"model": published_vgg(image), "args": arguments}, torch.randn(2, 3, 32, 32)),
    ):
        torch.save(checkpoint, tmp_path / "net.pth")
        cli([family, str(tmp_path / "net.pth"), str(tmp_path / "net.safetensors")])
        state, kwargs = convert.load_any(tmp_path / "net.safetensors", ())
        assert f"{len(state)} tensors, create(name='{kwargs['name']}', " in capsys.readouterr().out
        other = models.create(**kwargs)
        other.load_state_dict(state, strict=True)
        same_bits(other.eval()(x), model.eval()(x))
        same = convert.load_any(tmp_path / "net.pth", ("ma_snn", family))
        assert same[1] == kwargs and shapes(same[0]) == shapes(state)
    with pytest.raises(ValueError, match="read safely"):  # what other families' files hold, too, is refused
        convert.load_published(tmp_path / "net.pth", "ma_snn")


def test_file_of_a_module(tmp_path, capsys):
    """No network: its file says what it is, and a loader of networks refuses it in words."""
    module, source, target = PFA(4, 3, 2), tmp_path / "pfa.pth", tmp_path / "pfa.safetensors"
    torch.save(published_pfa(module.state_dict()), source)
    files = ["pfa", str(source), str(target)]
    asked = r"^convert: .*pfa.pth: .* give scale and fusion \(on the command line, --scale and --fusion\)$"
    with pytest.raises(SystemExit, match=asked):
        cli(files)
    assert not target.exists()
    cli([*files, "--scale", "sum", "--fusion", "multiply"])
    assert "6 tensors, PFA(steps=4, channels=3, rank=2, kernel=3, scale='sum'" in capsys.readouterr().out
    with safe_open(target, "pt") as file:
        assert file.metadata()["module"] == "'PFA'" and set(file.keys()) == set(module.state_dict())
    with pytest.raises(ValueError, match="holds a PFA alone, a part of a network; wanted a network"):
        convert.load_any(target, ())


# ---- keys
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["pfa", "pfa_vgg", "gesture", "pfa_fmnist", "att_vgg"])
def test_a_key_alone(family):
    """Has the name that it has among all; a rank weight has none."""
    with torch.device("meta"):
        theirs = {
            "pfa": lambda: {"weight": torch.ones(3), **published_pfa(PFA(4, 5, 3).state_dict())},
            "pfa_vgg": lambda: published_events(small("pfa_vgg_cifar10_dvs")),
            "gesture": lambda: published_events(small("pfa_vgg_dvs_gesture")),
            "pfa_fmnist": lambda: published_fmnist(fmnist()),
            "att_vgg": lambda: published_vgg(models.create("att_vgg11")),
        }[family]()
    family, alone = "pfa_vgg" if family == "gesture" else family, {}
    whole = convert.from_published(theirs, family)
    for key, value in theirs.items():
        one = convert.from_published({key: value}, family)
        assert len(one) <= 1
        alone |= one
    assert list(alone) == list(whole)
    dropped = len(theirs) - len(whole)
    assert dropped == {"pfa": 1, "pfa_vgg": 5}.get(family, 0)


def test_a_key_of_several_networks():
    """Of a part of an Att-VGG, what fits: published widths first, with attention before without."""
    for shape, name in ((128, "features.0.current.conv.bias"), (64, "features.0.current.conv.bias")):
        assert list(convert.from_published({"features.4.bias": torch.ones(shape)}, "att_vgg")) == [name]
    part = {"features.4.bias": torch.ones(128), "features.3.weight": torch.ones(128, 64, 3, 3)}
    assert list(convert.from_published(part, "att_vgg")) == [
        "features.0.norm.bias",
        "features.0.current.weight",
    ]


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("family", "state", "sentence"),
    [
        ("pfa", {"TS_conv.gain": ONE}, "'TS_conv.gain' is not a key of a published pfa network"),
        ("pfa", {"conv.1.weight": ONE}, "'conv.1.weight' is not a key of a published pfa network"),
        ("pfa", {"bias": ONE}, "'bias' is not a key of a published pfa network"),
        ("pfa", {"weight": [1.0]}, "'weight' holds list, not a tensor: this is not a state dict of pfa"),
        ("pfa", {"TC_FC.bias": ONE, "module.TC_FC.bias": ONE}, "'module.TC_FC.bias' is there twice"),
        (
            "pfa_vgg",
            {"conv.3.1.weight": ONE, "conv.4.1.weight": ONE},
            "'conv.3.1.weight' is a key of the published gesture network, 'conv.4.1.weight' of the others",
        ),
        (
            "pfa_vgg",
            {"conv.26.0.weight": ONE},
            "'conv.26.0.weight' is not a key of a published pfa_vgg network",
        ),
        ("pfa_vgg", {"stages.0.first.current.weight": ONE}, "is not a key of a published pfa_vgg network"),
        ("pfa_vgg", {"conv.1.bias": ONE}, "'conv.1.bias' is not a key of a published pfa_vgg network"),
        (
            "pfa_fmnist",
            {"conv.2.weight": ONE},
            "'conv.2.weight' is not a key of a published pfa_fmnist network",
        ),
        ("att_vgg", {"features.3.ca.sharedMLP.0.weight": ONE}, "is not a key of a published att_vgg network"),
        (
            "att_vgg",
            {"features.1.ca.sharedMLP.0.weight": ONE},
            r"must be the matrix of a gate, got shape \(1,\)",
        ),
        (
            "att_vgg",
            {"features.1.sa.conv.weight": ONE, "features.3.weight": torch.ones(64, 64, 3, 3)},
            r"no att_vgg \(att_vgg7, .*\) has all of these keys, in these shapes",
        ),
    ],
)
def test_keys_of_no_network(family, state, sentence):
    with pytest.raises(ValueError, match=sentence):
        convert.from_published(state, family)


# ---- what is not in the file, or does not belong together
# ------------------------------------------------------------------------------------------


def test_without_rank_weights():
    """Scale and fusion are asked for; where they are in the file, another is refused."""
    with torch.device("meta"):
        theirs = published_events(small("pfa_vgg_cifar10_dvs"), weighted=False)
        weighted = published_events(small("pfa_vgg_cifar10_dvs"))
        image = published_fmnist(fmnist())
    for given, sentence in (
        ({}, "no PFA has a rank weight, .* give scale and fusion"),
        ({"scale": "sum"}, "not in the file: give fusion"),
        ({"scale": "most", "fusion": "add"}, "scale must be one of mean, sum, got 'most'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            convert.recognise(theirs, "pfa_vgg", **given)
    _, kwargs = convert.recognise(theirs, "pfa_vgg", scale="sum", fusion="residual")
    assert (kwargs["scale"], kwargs["fusion"]) == ("sum", "residual")
    convert.recognise(weighted, "pfa_vgg", scale="mean")
    with pytest.raises(ValueError, match="scale is 'mean' where a PFA has a rank weight, got 'sum'"):
        convert.recognise(weighted, "pfa_vgg", scale="sum")
    del weighted["conv.13.weight"]
    with pytest.raises(ValueError, match="an incomplete pfa_vgg network, 'conv.13.weight' is missing"):
        convert.recognise(weighted, "pfa_vgg")
    assert convert.recognise(image, "pfa_fmnist", fusion="multiply")[1]["fusion"] == "multiply"
    for family in ("ma_snn", "ms_resnet", "att_ms_resnet", "att_vgg"):
        with pytest.raises(ValueError, match=f"scale and fusion are of a PFA; {family} has none"):
            convert.recognise({}, family, scale="sum", fusion="add")


def changed(theirs, **values):
    """Without the tensors that are None."""
    return {k: v for k, v in (theirs | values).items() if v is not None}


def test_networks_that_are_incomplete_or_of_no_published_form():
    with torch.device("meta"):
        event, gesture, image, picture = (
            published_events(small("pfa_vgg_cifar10_dvs")),
            published_events(small("pfa_vgg_dvs_gesture")),
            published_fmnist(fmnist()),
            published_vgg(vgg()),
        )
        module = {"weight": torch.ones(3), **published_pfa(PFA(4, 5, 3).state_dict())}
        for family, state, sentence in (
            (
                "pfa",
                changed(module, **{"SC_FC.bias": None}),
                "incomplete pfa network, 'channel_bias' is missing",
            ),
            (
                "pfa",
                changed(module, **{"SC_FC.bias": torch.ones(4)}),
                r"'channel_bias' is \(4,\), wanted \(3,\)",
            ),
            (
                "pfa",
                changed(module, **{"TS_conv.weight": torch.ones(3, 4)}),
                "must have 4 dimensions, got shape",
            ),
            (
                "pfa",
                changed(module, **{"TS_conv.weight": torch.ones(3, 4, 5, 5)}),
                "kernel must be 1 or 3, got 5",
            ),
            ("pfa_vgg", changed(event, **{"conv.4.1.bias": None}), "'stages.0.second.norm.bias' is missing"),
            (
                "pfa_vgg",
                {k: v for k, v in event.items() if "_" not in k or "run" in k},
                "incomplete pfa_vgg network",
            ),
            (
                "pfa_vgg",
                changed(event, **{"fc.1.0.weight": torch.ones(10, 7)}),
                r"is \(10, 7\), wanted \(10, 288\)",
            ),
            (
                "pfa_vgg",
                changed(event, **{"conv.7.TS_conv.weight": torch.ones(7, 12, 3, 3)}),
                r"ranks \[8, 7, 8, 8, 8\]",
            ),
            (
                "pfa_vgg",
                changed(gesture, **{"fc.1.0.weight": torch.ones(11, 2048)}),
                "11 outputs are not a multiple of the 10",
            ),
            (
                "pfa_vgg",
                changed(gesture, **{"fc.1.0.weight": torch.ones(110, 96)}),
                "3 cells a channel, which do not make a square",
            ),
            (
                "pfa_fmnist",
                changed(image, **{"fc.4.0.weight": None}),
                "'classifier.current.weight' is missing",
            ),
            (
                "pfa_fmnist",
                changed(image, **{"conv.2.TC_FC.weight": None}),
                "'features.attention.temporal_weight' is missing",
            ),
            ("att_vgg", changed(picture, **{"features.0.bias": None}), "'stem.current.conv.bias' is missing"),
            (
                "att_vgg",
                changed(picture, **{"classifier.0.weight": torch.ones(64, 7)}),
                r"'hidden.current.weight' is \(64, 7\)",
            ),
            (
                "att_vgg",
                {"features.0.weight": torch.ones(64, 3, 3, 3)},
                "no att_vgg has 0 norms; there are 5 of att_vgg7",
            ),
        ):
            with pytest.raises(ValueError, match=sentence):
                convert.recognise(state, family)


def test_tensors_of_other_dimensions():
    """Of the first and last layers of every family: a sentence, whatever is read of it first."""
    with torch.device("meta"):
        files = {
            "pfa": published_pfa(PFA(4, 5, 3).state_dict()),
            "pfa_vgg": published_events(small("pfa_vgg_dvs_gesture"), weighted=False),
            "pfa_fmnist": published_fmnist(fmnist()),
            "att_vgg": published_vgg(vgg("att_vgg7")),
            "ma_snn": test_models.published(models.create("ma_snn_dvs_gesture", width=0.125).state_dict()),
            "att_ms_resnet": test_ms_resnet.published(models.create("att_ms_resnet18", width=0.125)),
        }
        for family, theirs in files.items():
            given = {"scale": "mean", "fusion": "add"} if family.startswith("pfa") else {}
            convert.recognise(theirs, family, **given)
            weights = [key for key in theirs if key.endswith("weight")]
            for key in {*weights[:8], *weights[-4:]}:
                for shape in ((), (0,) * theirs[key].dim()):
                    with pytest.raises(ValueError, match=r"'[\w.]+'|must|\bno\b"):
                        convert.recognise(theirs | {key: torch.ones(shape)}, family, **given)


def test_families():
    known = "ma_snn, ms_resnet, att_ms_resnet, pfa, pfa_vgg, pfa_fmnist, att_vgg, fsvae, fsvae_autoencoder"
    assert ", ".join(convert.FAMILIES) == known
    for f in (
        convert.from_published,
        convert.recognise,
        lambda _, name: convert.load_published("no.pth", name),
    ):
        with pytest.raises(ValueError, match=f"family must be one of {known}, got 'vgg'"):
            f({}, "vgg")


# ---- of SpikingJelly's users
# ------------------------------------------------------------------------------------------


def of_a_user(net):
    """The state dict of a network without gates, as one of 0.0.0.0.12 has it: containers and attributes."""
    theirs = {}
    for i, layer in enumerate(m for m in net.modules() if isinstance(m, SpikingLayer | NormedLayer)):
        for name, part in (("0", layer.current), ("1", layer.norm)):
            theirs |= {f"block{i}.conv.{name}.{key}": value for key, value in part.state_dict().items()}
        if isinstance(getattr(layer, "neuron", None), neurons.PLIF):
            theirs[f"block{i}.sn.w"] = layer.neuron.w.detach()
    last = getattr(net, "classifier", None)
    theirs |= {f"fc.{k}": v for k, v in last.state_dict().items()} if isinstance(last, nn.Linear) else {}
    return theirs


def plif(c, width):
    return SpikingLayer(nn.Conv2d(c, width, 3), neurons.PLIF(2.5), norm=nn.BatchNorm2d(width))


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.create("ma_snn_dvs_gesture", attention=None, width=0.125),
        lambda: models.create("ms_resnet18", width=0.125, num_classes=3),
        lambda: nn.Sequential(plif(2, 3), plif(3, 4)),
    ],
)
def test_from_spikingjelly(make):
    """By what the layers hold and their order, shortcuts of other shapes in whatever order."""
    net = make()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    theirs = of_a_user(net)
    if any("block2." in key for key in theirs) and hasattr(net, "stages"):  # a shortcut stands first
        first = {key: value for key, value in theirs.items() if value.dim() == 4 and value.shape[-1] == 1}
        places = {key.rpartition(".")[0].rpartition(".")[0] for key in first}
        ahead = {k: v for k, v in theirs.items() if any(k.startswith(f"{place}.") for place in places)}
        theirs = {**ahead, **theirs}
    twin = make()
    twin.load_state_dict(from_spikingjelly({"net": theirs}, twin))
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def test_what_is_not_from_spikingjelly():
    net = nn.Sequential(plif(2, 3), plif(3, 4))
    theirs = of_a_user(net)
    less = {key: value for key, value in theirs.items() if "block1" not in key}
    with pytest.raises(
        ValueError,
        match=r"no layer for 1.current \(convolution: weight \[4, 3, 3, 3\].*norm.weight \[4\].*w \[\]\); "
        r"left of it: nothing",
    ):
        from_spikingjelly(less, net)
    with pytest.raises(ValueError, match=r"the model has no layer for block1.conv.0"):
        from_spikingjelly(theirs, net[:1])
    with pytest.raises(ValueError, match=r"left of it: block0.conv.0 \(convolution: weight \[[^b]*norm"):
        from_spikingjelly({k: v for k, v in theirs.items() if k != "block0.conv.0.bias"}, net)
    with pytest.raises(ValueError, match="sn.u is neither a convolution"):
        from_spikingjelly({**theirs, "sn.u": torch.zeros(1)}, net)
    with pytest.raises(ValueError, match="early.weight, early.bias, .* is neither a convolution"):
        from_spikingjelly({**{f"early.{k}": v for k, v in net[0].norm.state_dict().items()}, **theirs}, net)
    with pytest.raises(ValueError, match=r"; left of it: \S+ \(convolution of three dimensions"):
        from_spikingjelly({k: v[None] if v.dim() == 4 else v for k, v in theirs.items()}, net)
    bare = {k: v for k, v in theirs.items() if "block0" not in k or v.shape != (3,) or "running" in k}
    with pytest.raises(
        ValueError, match=r"left of it: block0.conv.0 \(convolution: weight \[3, 2, 3, 3\], norm.run"
    ):
        from_spikingjelly(bare, net)
    early = {k: v for k, v in theirs.items() if "tracked" not in k}  # of a PyTorch that did not count batches
    assert from_spikingjelly(early, net)["0.norm.num_batches_tracked"] == 0
