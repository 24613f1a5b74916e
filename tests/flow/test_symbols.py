"""What a flow may and may not do with values that are not there yet."""

from __future__ import annotations

import logging
import math
import operator

import numpy as np
import pytest
import torch
from flow_cases import Model, calls, place

from chatlearn.errors import FlowError
from chatlearn.flow import trace

policy, reward = Model("policy"), Model("reward")

HARMLESS = {
    "index": lambda out: out["x"],
    "index of index": lambda out: out["x"][:, 1:][0],
    "attribute": lambda out: out["x"].shape,
    "method": lambda out: out["x"].mean(dim=0).item(),
    "items": lambda out: out.items(),
    "arithmetic": lambda out: (out["x"] * 2 + 1) / -(out["y"] ** 2) // 3 % 4 - out["z"],
    "reflected": lambda out: 2 * (1 - out["x"]) + 2 / out["x"] + 2 ** out["x"],
    "matrix product": lambda out: out["x"] @ out["y"],
    "divmod": lambda out: (divmod(out["x"], 2), divmod(2, out["x"])),
    "bits": lambda out: ~((out["a"] & out["b"]) | (out["c"] ^ 1)) << 1 >> 1,
    "comparison": lambda out: (
        out["x"] > 0,
        out["x"] == 1,
        out["x"] != 1,
        out["x"] <= 0,
        out["x"] >= 2,
        out["y"] < out["x"],
    ),
    "arithmetic with tensors": lambda out: (torch.ones(2) + out["x"], out["x"] * torch.ones(2)),
    "rounding": lambda out: (abs(out["x"]), round(out["x"]), round(out["x"], 2), +out["x"]),
    "the whole batch": lambda out: (out + 1, out == 1, out.size, -out),
    "augmented": lambda out: operator.iadd(out["x"], 1),
    "print": lambda out: print(out, out["x"], [out["x"]]),
    "str": lambda out: (str(out), repr(out["x"])),
    "f-string": lambda out: f"{out} {out['x']} {out['x']!r:>40}",
    "f-string with format": lambda out: f"{out['x']:.3f} {out['n']:>5d} {out:10}",
    "format": lambda out: "%s {:.2f}".format(out["x"]) % out["x"],
    "logging": lambda out: logging.getLogger("flow").warning("%s", out["x"]),
    "arithmetic with arrays": lambda out: (np.ones(2) + out["x"], out["x"] * np.ones(2), np.ones((2, 2)) @ out["x"]),
    "arithmetic with numbers of numpy": lambda out: (
        np.float64(1) + out["x"],
        np.float32(2) ** out["x"],
        np.int64(3) // out["x"],
        np.bool_(True) | out["x"],
        divmod(np.int64(3), out["x"]),
    ),
    "comparison with numpy": lambda out: (np.float64(1) < out["x"], np.ones(2) == out["x"], np.int64(1) >= out["x"]),
    "the whole batch as a key": lambda out: ({out: 1}, {out}),
    "identity": lambda out: 1 if out["x"] is None else 2,
}


@pytest.mark.parametrize("read", HARMLESS.values(), ids=HARMLESS)
def test_reading_is_harmless_as_long_as_nothing_uses_it(read):
    def flow(batch):
        out = policy.forward_step(batch)
        read(out)
        read(batch)
        return reward.forward_step(out)

    assert calls(trace(flow)) == [("policy.forward_step", "batch"), ("reward.forward_step", "policy.forward_step")]


def test_print_shows_where_the_value_comes_from(capsys):
    def flow(batch):
        out = policy.forward_step(batch)
        print(out["x"].mean())
        return out

    trace(flow)
    assert "policy.forward_step['x'].mean(…)" in capsys.readouterr().out


NEEDS_DATA = {
    "if": lambda out: 1 if out["x"] else 2,
    "if on a comparison": lambda out: 1 if out["x"].mean() > 0 else 2,
    "if on the batch": lambda out: 1 if out else 2,
    "and": lambda out: out["x"] and 1,
    "not": lambda out: not out["x"],
    "bool": lambda out: bool(out["x"]),
    "any": lambda out: any([out["x"]]),
    "chained comparison": lambda out: 0 < out["x"] < 1,
    "max": lambda out: max(out["x"], out["y"]),
    "sorted": lambda out: sorted([out["x"], out["y"]]),
    "in": lambda out: 3 in out["x"],
    "key in the batch": lambda out: "x" in out,
    "is member": lambda out: out["x"] in [1, 2],
    "int": lambda out: int(out["x"]),
    "float": lambda out: float(out["x"]),
    "complex": lambda out: complex(out["x"]),
    "range": lambda out: range(out["n"]),
    "as an index": lambda out: [1, 2][out["i"]],
    "math": lambda out: math.sqrt(out["x"]),
    "len": lambda out: len(out["x"]),
    "len of the batch": lambda out: len(out),
    "iteration": lambda out: [x for x in out["x"]],  # noqa: C416 - the loop is what is tested
    "iteration over items": lambda out: {k: v for k, v in out.items()},  # noqa: C416
    "list": lambda out: list(out),
    "dict": lambda out: dict(out),
    "sum": lambda out: sum(out["x"]),
    "unpacking": lambda out: (lambda a, b: a)(*out["x"]),
    "keywords": lambda out: dict(**out),
    "dict display": lambda out: {**out, "r": 1},
    "next": lambda out: next(out),
    "next of a part": lambda out: next(out["x"]),
    "reversed": lambda out: list(reversed(out)),
    "as a key": lambda out: {out["x"]: 1},
    "as a member": lambda out: {out["x"]},
    "looked up": lambda out: {1: 2}[out["x"]],
    "looked up, with a default": lambda out: {1: 2}.get(out["x"], 3),
    "is member of a set": lambda out: out["x"] in {1, 2},
    "numpy": lambda out: np.asarray(out["x"]),
    "numpy function": lambda out: np.stack([out["x"], out["y"]]),
    "numpy ufunc": lambda out: np.exp(out["x"]),
}


@pytest.mark.parametrize("use", NEEDS_DATA.values(), ids=NEEDS_DATA)
def test_what_needs_data_is_an_error_that_names_line_and_remedy(use):
    """Not covered: ``"%d" % value``, where Python puts a TypeError of its own in the place of ours."""

    def flow(batch):
        use(policy.forward_step(batch))

    with pytest.raises(FlowError) as caught:
        trace(flow)
    assert f"{__file__}:{use.__code__.co_firstlineno}" in str(caught.value)
    assert "policy.forward_step" in str(caught.value)
    assert "Move what depends on data into a step" in str(caught.value)


@pytest.mark.parametrize("read", [lambda out: out, lambda out: out["lock"]], ids=["whole", "part"])
def test_a_with_block_of_one_is_an_error_that_names_line_and_remedy(read):
    def flow(batch):
        with read(policy.forward_step(batch)):  # the block
            raise AssertionError("entering is the error")

    with pytest.raises(FlowError, match=r"asks for the context .* of the output of policy\.forward_step") as caught:
        trace(flow)
    assert str(caught.value).startswith(f"{place(flow, '# the block')}: ")


@pytest.mark.parametrize("whole", [True, False], ids=["raw batch", "output"])
def test_calling_a_batch_is_an_error_that_names_line_and_remedy(whole):
    def flow(batch):
        out = policy.forward_step(batch)
        return (batch if whole else out)(1)

    origin = "the batch" if whole else r"the output of policy\.forward_step"
    with pytest.raises(FlowError, match=f"the flow calls {origin} like a function.*pass it to a step") as caught:
        trace(flow)
    assert str(caught.value).startswith(f"{place(flow, 'return')}: ")


HANDED_TO_TORCH = {
    "function": lambda out: torch.sigmoid(out["x"]),
    "whole batch": lambda out: torch.sigmoid(out),
    "list": lambda out: torch.cat([torch.ones(2), out["x"]]),
    "stack": lambda out: torch.stack([out["x"], out["y"]]),
    "tensor method": lambda out: torch.ones(2).add(out["x"]),
    "functional": lambda out: torch.nn.functional.softmax(out["x"], dim=-1),
    "layer": lambda out: torch.nn.Linear(2, 2)(out["x"]),
    "keyword": lambda out: torch.where(condition=out["x"], input=torch.ones(2), other=torch.ones(2)),
    "tensor()": lambda out: torch.tensor(out["x"]),
    "as_tensor()": lambda out: torch.as_tensor(out["x"]),
}


@pytest.mark.parametrize("use", HANDED_TO_TORCH.values(), ids=HANDED_TO_TORCH)
def test_handing_one_to_torch_is_an_error_at_once(use):
    """Operators between a tensor and a poisoned value count as arithmetic (above), on either side."""

    def flow(batch):
        use(policy.forward_step(batch))

    with pytest.raises(FlowError) as caught:
        trace(flow)
    assert f"{__file__}:{use.__code__.co_firstlineno}" in str(caught.value)


CHANGES = {
    "set item": lambda out: operator.setitem(out, "r", 1),
    "delete item": lambda out: operator.delitem(out, "r"),
    "update": lambda out: out.update({"r": 1}),
    "update by keyword": lambda out: out.update(r=1),
    "or-equals": lambda out: operator.ior(out, {"r": 1}),
    "pop": lambda out: out.pop("r"),
    "popitem": lambda out: out.popitem(),
    "setdefault": lambda out: out.setdefault("r", 1),
    "clear": lambda out: out.clear(),
    "set attribute": lambda out: setattr(out, "r", 1),
    "delete attribute": lambda out: delattr(out, "r"),
    "set item of a part": lambda out: operator.setitem(out["nested"], "r", 1),
    "set rows of a part": lambda out: operator.setitem(out["x"], slice(2), 0),
    "delete item of a part": lambda out: operator.delitem(out["nested"], "r"),
    "set attribute of a part": lambda out: setattr(out["x"], "grad", None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("whole", [True, False], ids=["raw batch", "output"])
def test_changing_one_is_an_error_at_once(change, whole):
    def flow(batch):
        change(batch if whole else policy.forward_step(batch))
        raise AssertionError("the change itself is the error")

    with pytest.raises(FlowError) as caught:
        trace(flow)
    assert f"{__file__}:{change.__code__.co_firstlineno}" in str(caught.value)
    assert "Move what depends on data into a step" in str(caught.value)


REACHES_A_STEP = {
    "alone": lambda out: reward.forward_step(out["x"]),
    "second": lambda out: reward.forward_step(out, out["x"]),
    "first": lambda out: reward.forward_step(out["x"], out),
    "by name": lambda out: reward.forward_step(data=out["x"]),
    "as a constant": lambda out: reward.forward_step(out, weight=out["x"] * 2),
    "in a dict": lambda out: reward.forward_step({"x": out["x"]}),
    "in a list": lambda out: reward.forward_step(out, weight=[1, out["x"]]),
    "in a tuple": lambda out: reward.forward_step(out, weight=(1, out["x"].mean())),
    "deep": lambda out: reward.forward_step(out, weight={"a": [(out["x"],)]}),
    "of two parameters": lambda out: reward.compare(out, out["x"]),
    "formatted method": lambda out: reward.forward_step(out.copy()),
}


@pytest.mark.parametrize("use", REACHES_A_STEP.values(), ids=REACHES_A_STEP)
def test_a_poisoned_value_that_reaches_a_step_is_an_error(use):
    def flow(batch):
        return use(policy.forward_step(batch))

    with pytest.raises(FlowError) as caught:
        trace(flow)
    text, line = str(caught.value), f"{__file__}:{use.__code__.co_firstlineno}"
    assert text.startswith(f"{line}: reward.")
    assert f"read at {line}" in text
    assert "read from it inside the step" in text


@pytest.mark.parametrize(
    "use",
    [
        lambda out: reward.forward_step({"a": out}),
        lambda out: reward.forward_step([out, out]),
        lambda out: reward.forward_step(out, weight=(out,)),
    ],
    ids=["dict", "list", "constant"],
)
def test_a_whole_batch_inside_of_a_container_is_an_error(use):
    def flow(batch):
        return use(policy.forward_step(batch))

    with pytest.raises(FlowError, match="Pass batches as arguments of their own"):
        trace(flow)


RETURNS = {
    "alone": lambda bad, out: bad,
    "tuple": lambda bad, out: (out, bad),
    "list": lambda bad, out: [bad],
    "dict": lambda bad, out: {"a": out, "b": bad},
    "deep": lambda bad, out: {"a": [(bad,)]},
}


@pytest.mark.parametrize("form", RETURNS.values(), ids=RETURNS)
def test_a_poisoned_value_that_is_returned_is_an_error_that_names_the_read(form):
    def flow(batch):
        out = policy.forward_step(batch)
        bad = out["logits"].mean()  # the read
        return form(bad, out)

    with pytest.raises(FlowError) as caught:
        trace(flow)
    assert f"read at {place(flow, '# the read')}" in str(caught.value)
    assert "Return whole outputs of steps" in str(caught.value)


def test_the_error_names_both_the_read_and_the_use():
    def flow(batch):
        out = policy.forward_step(batch)
        loss = out["loss"] * 2  # the read
        if loss > 1:  # the use
            return out
        return None

    with pytest.raises(FlowError) as caught:
        trace(flow)
    assert str(caught.value).startswith(place(flow, "# the use"))
    assert f"read at {place(flow, '# the read')}" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda out: out["x"].append(1),
        lambda out: out["x"].mul_(2),
        lambda out: out["x"]["y"].update(a=1),
        lambda out: out["x"].clear(),
    ],
    ids=["append", "mul_", "update", "clear"],
)
def test_changing_contents_by_a_method_is_an_error_at_once(change):
    """What the line does would be lost: the flow runs once, on stand-ins."""

    def flow(batch):
        out = policy.forward_step(batch)
        change(out)
        return out

    with pytest.raises(FlowError, match=r"test_symbols\.py:\d+: the flow changes the contents"):
        trace(flow)
