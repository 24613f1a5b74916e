"""Forms that a flow may have, over toy modules, for any test that runs flows (``from flow.flow_forms import FORMS``).

Each entry of :data:`FORMS` builds a flow from :class:`Modules`. The modules' steps are plain arithmetic on the column
``x`` and on columns named after modules, exact in float64 for the whole numbers used here: an input that is dropped,
doubled or out of order changes the result. They work on ndarrays and tensors.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import chatlearn
from chatlearn import BaseModule
from chatlearn.flow import after

Flow = Callable[[Any], Any]


class Toy(BaseModule):
    """Steps that mix all columns of their input.

    Args:
        name: of the module; its steps add a column of that name.
        factor: a whole number.
    """

    thread_safe = True

    def __init__(self, name, factor):
        super().__init__(name)
        self.factor = factor

    def forward_step(self, data, iteration=0, bonus=0):
        total = sum((i + 1) * data[key] for i, key in enumerate(sorted(data)))
        return {"x": self.factor * data["x"] + bonus, self.name: total + bonus}

    def eval_step(self, data):
        return {"x": data["x"] - self.factor}

    @chatlearn.step
    def compare(self, first, second, *, margin=0):
        return {"x": first["x"] - 2 * second["x"] + margin, self.name: second["x"]}

    @chatlearn.step
    def gather(self, first, *rest):
        return {"x": first["x"] + sum((i + 2) * other["x"] for i, other in enumerate(rest))}

    @chatlearn.step
    def consult(self, data, judge, others=()):
        verdict = judge.eval_step(data)
        for other in others:
            verdict = other.eval_step(verdict)
        return {"x": 3 * verdict["x"]}


@dataclass(frozen=True)
class Modules:
    """What flows are built from."""

    policy: Toy
    reference: Toy
    reward: Toy
    value: Toy

    @property
    def all(self) -> list[Toy]:
        return [self.policy, self.reference, self.reward, self.value]


def toy_modules() -> Modules:
    """New modules, for one engine or one test."""
    return Modules(Toy("policy", 2), Toy("reference", 3), Toy("reward", 5), Toy("value", 7))


@dataclass(frozen=True)
class Form:
    """A form.

    Attributes:
        name: in words.
        steps: the modules whose steps it calls, in order.
        make: builds the flow.
    """

    name: str
    steps: str
    make: Callable[[Modules], Flow]


FORMS: list[Form] = []
"""All of them."""


def form(name: str, steps: str) -> Callable[[Callable[[Modules], Flow]], Callable[[Modules], Flow]]:
    def add(make):
        FORMS.append(Form(name, steps, make))
        return make

    return add


@form("calls one after another", "policy reference value reward")
def _(m):
    def flow(batch):
        policy_out = m.policy.forward_step(batch)
        ref_out = m.reference.forward_step(policy_out)
        value_out = m.value.forward_step(policy_out)
        reward_out = m.reward.forward_step(policy_out, ref_out, value_out)
        return reward_out  # noqa: RET504 - the form is this one

    return flow


@form("a call in return", "policy reward")
def _(m):
    def flow(batch):
        out = m.policy.forward_step(batch)
        return m.reward.forward_step(out)

    return flow


@form("nested calls", "policy reference reward")
def _(m):
    def flow(batch):
        return m.reward.forward_step(m.reference.forward_step(m.policy.forward_step(batch)), batch)

    return flow


@form("if on configuration", "policy value")
def _(m):
    scored, valued = False, True

    def flow(batch):
        out = m.policy.forward_step(batch)
        if scored:
            out = m.reward.forward_step(out)
        elif valued:
            out = m.value.forward_step(out)
        return out if not scored else batch

    return flow


@form("a loop", "policy reference reward value policy reference reward value")
def _(m):
    def flow(batch):
        out = batch
        for _ in range(2):
            for module in m.all:
                out = module.forward_step(out, batch)
        return out

    return flow


@form("a while loop with break", "policy policy policy")
def _(m):
    def flow(batch):
        out, rounds = batch, 0
        while True:
            out = m.policy.forward_step(out, bonus=rounds)
            rounds += 1
            if rounds == 3:
                break
        return out

    return flow


@form("a comprehension", "policy reference reward value")
def _(m):
    def flow(batch):
        return [module.forward_step(batch, bonus=i) for i, module in enumerate(m.all)]

    return flow


@form("a dict comprehension", "policy reference reward value")
def _(m):
    return lambda batch: {module.name: module.eval_step(batch) for module in m.all}


@form("a generator unpacked", "policy reference reward")
def _(m):
    def flow(batch):
        first, *rest = (module.forward_step(batch) for module in (m.policy, m.reference))
        return m.reward.gather(first, *rest)

    return flow


@form("a closure", "value")
def _(m):
    def outer(module, bonus):
        def inner(batch):
            return module.forward_step(batch, bonus=bonus)

        return inner

    return outer(m.value, 11)


@form("a lambda", "policy reward")
def _(m):
    return lambda batch: m.reward.forward_step(m.policy.forward_step(batch))


@form("functools.partial of a flow", "policy value")
def _(m):
    def flow(first, batch, last=None):
        return last.forward_step(first.forward_step(batch))

    return functools.partial(flow, m.policy, last=m.value)


@form("functools.partial of a step", "policy reward")
def _(m):
    greedy, versus = functools.partial(m.policy.forward_step, bonus=4), functools.partial(m.reward.compare, margin=9)

    def flow(batch):
        return versus(batch, greedy(batch))

    return flow


@form("a step itself as the flow", "policy")
def _(m):
    return m.policy.forward_step


@form("functools.reduce", "policy reference reward value")
def _(m):
    return lambda batch: functools.reduce(lambda out, module: module.forward_step(out), m.all, batch)


@form("map", "policy reference reward value value")
def _(m):
    return lambda batch: m.value.gather(*map(lambda module: module.eval_step(batch), m.all))  # noqa: C417


@form("attributes of self in a method", "policy reward")
def _(m):
    class Flows:
        def __init__(self):
            self.policy, self.nested = m.policy, {"reward": m.reward}

        def environment(self, batch):
            """A docstring."""
            out = self.policy.forward_step(batch)
            return self.nested["reward"].forward_step(out)

    return Flows().environment


@form("a callable object", "policy")
def _(m):
    class Flow:
        policy = m.policy

        def __call__(self, batch):
            return self.policy.eval_step(batch)

    return Flow()


@form("a static method and a class method", "policy reward")
def _(m):
    class Flows:
        @staticmethod
        def score(out):
            return m.reward.forward_step(out)

        @classmethod
        def run(cls, batch):
            return cls.score(m.policy.forward_step(batch))

    return Flows.run


@form("aliases of steps", "policy policy reward")
def _(m):
    generate, score = m.policy.forward_step, m.reward.forward_step

    def flow(batch):
        again = generate
        return score(again(generate(batch)))

    return flow


@form("getattr by a name from the configuration", "policy reward")
def _(m):
    step = "eval_step"
    return lambda batch: getattr(m.reward, step)(getattr(m.policy, "forward_step")(batch))  # noqa: B009


@form("docstring, constants, prints and an f-string", "policy")
def _(m):
    def flow(batch):
        """What a flow may hold besides calls."""
        x = 1
        _ = f"{batch} {x}"
        assert x, "a condition on plain values"
        out = m.policy.forward_step(batch)
        print(batch, out)
        "a string that stands alone"
        return out

    return flow


@form("annotated assignment", "policy reward")
def _(m):
    def flow(batch: dict) -> dict:
        out: dict[str, Any] = m.policy.forward_step(batch)
        scored: dict
        scored = m.reward.forward_step(out)
        return scored

    return flow


@form("data by keyword", "policy reward")
def _(m):
    def flow(batch):
        out = m.policy.forward_step(data=batch)
        return m.reward.compare(second=batch, first=out)

    return flow


@form("keyword dicts and argument lists", "policy reward")
def _(m):
    options = {"bonus": 2}

    def flow(batch):
        out = m.policy.forward_step(*[batch], **options)
        return m.reward.compare(**dict(first=batch, second=out), margin=1)  # noqa: C408

    return flow


@form("a helper's tuple, unpacked", "policy value reward")
def _(m):
    def answers(batch):
        out = m.policy.forward_step(batch)
        return out, m.value.forward_step(out)

    def flow(batch):
        out, judged = answers(batch)
        return m.reward.forward_step(out, judged)

    return flow


@form("one module several times and by several steps", "policy policy policy policy")
def _(m):
    def flow(batch):
        a = m.policy.forward_step(batch)
        b = m.policy.eval_step(a)
        c = m.policy.forward_step(b, bonus=1)
        return m.policy.compare(a, c)

    return flow


@form("a module fed to itself", "policy policy policy")
def _(m):
    return lambda batch: m.policy.forward_step(m.policy.forward_step(m.policy.forward_step(batch)))


@form("one value twice in a call", "policy reward")
def _(m):
    def flow(batch):
        out = m.policy.forward_step(batch)
        return m.reward.compare(out, out)

    return flow


@form("merging: later inputs win", "policy value reward reward")
def _(m):
    def flow(batch):
        a, b = m.policy.forward_step(batch), m.value.forward_step(batch)
        return {"b": m.reward.forward_step(a, b), "a": m.reward.forward_step(b, a)}

    return flow


@form("the raw batch beside outputs", "policy reward")
def _(m):
    def flow(batch):
        return m.reward.forward_step(batch, m.policy.forward_step(batch), batch)

    return flow


@form("any number of inputs", "policy value reward")
def _(m):
    def flow(batch):
        return m.reward.gather(batch, m.policy.forward_step(batch), m.value.forward_step(batch))

    return flow


@form("a tuple as the result", "policy value")
def _(m):
    return lambda batch: (m.policy.forward_step(batch), m.value.forward_step(batch))


@form("a dict as the result, in its order", "policy value")
def _(m):
    def flow(batch):
        a = m.policy.forward_step(batch)
        return {"second": m.value.forward_step(a), "first": a}

    return flow


@form("returning the batch", "policy")
def _(m):
    def flow(batch):
        m.policy.forward_step(batch)
        return batch

    return flow


@form("the batch and an output", "policy")
def _(m):
    return lambda batch: [m.policy.forward_step(batch), batch]


@form("a decorator with functools.wraps", "policy")
def _(m):
    def noted(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @noted
    @noted
    def flow(batch):
        return m.policy.forward_step(batch)

    return flow


@form("assignment expressions", "policy reward")
def _(m):
    def flow(batch):
        if (rounds := 2) > 1:
            return m.reward.forward_step(out := m.policy.forward_step(batch), out, bonus=rounds)
        return batch

    return flow


@form("try and finally", "policy value")
def _(m):
    def flow(batch):
        try:
            out = m.policy.forward_step(batch)
            raise KeyError("configuration")
        except KeyError:
            return m.value.forward_step(out)
        finally:
            out = None

    return flow


@form("context managers", "policy reward")
def _(m):
    @contextlib.contextmanager
    def timed():
        yield m.policy

    def flow(batch):
        with timed() as module, contextlib.suppress(ValueError):
            out = module.forward_step(batch)
        return m.reward.forward_step(out)

    return flow


@form("match on configuration", "reference")
def _(m):
    kind = {"algorithm": "dpo", "rounds": 2}

    def flow(batch):
        match kind:
            case {"algorithm": "ppo"}:
                return m.policy.forward_step(batch)
            case {"algorithm": "dpo", "rounds": int(rounds)}:
                return m.reference.forward_step(batch, bonus=rounds)

    return flow


@form("recursion", "policy policy policy value")
def _(m):
    def improved(out, rounds):
        return m.value.forward_step(out) if rounds == 0 else improved(m.policy.forward_step(out), rounds - 1)

    return lambda batch: improved(batch, 3)


@form("outputs kept in a dict", "policy reference reward value value")
def _(m):
    def flow(batch):
        outs = {}
        for module in m.all:
            outs[module.name] = module.forward_step(batch, *outs.values())
        return m.value.compare(outs["reward"], outs["policy"])

    return flow


@form("steps after others", "policy value reward")
def _(m):
    def flow(batch):
        first = m.policy.forward_step(batch)
        with after(first):
            second = m.value.forward_step(batch)
            with after([second]):
                third = m.reward.forward_step(batch)
        return third, first

    return flow


@form("modules as constants", "policy policy value")
def _(m):
    def flow(batch):
        out = m.policy.consult(batch, m.reward)
        out = m.policy.consult(out, judge=m.reference, others=[m.reward, m.reference])
        return m.value.consult(out, m.policy)

    return flow
