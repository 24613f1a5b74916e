"""Forms of a flow that Python's language offers: control flow, functions, objects, statements."""

from __future__ import annotations

import contextlib
import functools
import operator
from typing import Any

from flow.form_modules import table

FORMS, form = table()


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


@form("a helper's tuple, unpacked", "policy value reward")
def _(m):
    def answers(batch):
        out = m.policy.forward_step(batch)
        return out, m.value.forward_step(out)

    def flow(batch):
        out, judged = answers(batch)
        return m.reward.forward_step(out, judged)

    return flow


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


@form("a conditional expression", "policy value")
def _(m):
    greedy = True
    return lambda batch: (m.value if greedy else m.reward).forward_step(
        m.policy.eval_step(batch) if greedy else m.policy.forward_step(batch)
    )


@form("a loop with else, continue and zip", "policy reward value")
def _(m):
    def flow(batch):
        out = batch
        for module, skipped in zip(m.all, [False, True, False, True], strict=True):
            if skipped:
                continue
            out = module.forward_step(out, batch)
        else:
            out = m.value.forward_step(out)
        return out

    return flow


@form("functions and classes made inside of the flow", "policy reward")
def _(m):
    def flow(batch):
        out = None

        class Judge:
            def __call__(self, answer):
                return m.reward.forward_step(answer)

        def generate():
            nonlocal out
            out = m.policy.forward_step(batch)

        generate()
        return Judge()(out)

    return flow


@form("default arguments", "policy value")
def _(m):
    def judged(out, judge=m.value, *, bonus=3):
        return judge.forward_step(out, bonus=bonus)

    return lambda batch, policy=m.policy: judged(policy.forward_step(batch))


@form("operator.methodcaller", "policy reward")
def _(m):
    def flow(batch):
        generate = operator.methodcaller("forward_step", batch, bonus=6)
        return operator.methodcaller("compare", batch, generate(m.policy))(m.reward)

    return flow


@form("a step of the class, called with the module", "reference")
def _(m):
    return lambda batch: type(m.reference).forward_step(m.reference, batch)
