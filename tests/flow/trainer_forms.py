"""Forms of a trainer's flow: ``train_step`` calls, with steps before, between and after them.

``policy`` and ``value`` are trained; each ``train_step`` raises the module's factor, so a later step of the same module
shows whether it ran before or after.
"""

from __future__ import annotations

import functools

from flow.form_modules import table

from chatlearn.flow import after

FORMS, form = table()


@form("one trainer", "policy")
def _(m):
    def flow(batch):
        m.policy.train_step(batch)

    return flow


@form("two trainers, one after another", "policy value")
def _(m):
    def flow(batch):
        m.policy.train_step(batch)
        m.value.train_step(batch)

    return flow


@form("train_step itself as the flow", "value")
def _(m):
    return m.value.train_step


@form("a lambda that returns train_step's value", "policy")
def _(m):
    return lambda batch: m.policy.train_step(batch)


@form("train_step values in a tuple", "policy value")
def _(m):
    return lambda batch: (m.policy.train_step(batch), m.value.train_step(batch))


@form("a comprehension of trainers", "policy value")
def _(m):
    return lambda batch: [module.train_step(batch) for module in (m.policy, m.value)]


@form("a loop over updates", "policy policy policy")
def _(m):
    def flow(batch):
        for _ in range(3):
            m.policy.train_step(batch)

    return flow


@form("if on configuration", "value")
def _(m):
    settings = {"critic": True, "actor": False}

    def flow(batch):
        if settings["actor"]:
            m.policy.train_step(batch)
        if settings["critic"]:
            m.value.train_step(batch)

    return flow


@form("nested steps before training", "reference reward policy")
def _(m):
    return lambda batch: m.policy.train_step(m.reward.forward_step(m.reference.forward_step(batch)))


@form("several inputs, merged", "reference reward policy")
def _(m):
    def flow(batch):
        scored = m.reference.forward_step(batch)
        m.policy.train_step(batch, scored, m.reward.forward_step(scored, bonus=2))

    return flow


@form("data by keyword", "reward policy")
def _(m):
    return lambda batch: m.policy.train_step(data=m.reward.forward_step(batch))


@form("an argument list", "reference reward policy")
def _(m):
    def flow(batch):
        outs = [module.eval_step(batch) for module in (m.reference, m.reward)]
        m.policy.train_step(batch, *outs)

    return flow


@form("inference by the trained module before and after the update", "policy policy policy value")
def _(m):
    def flow(batch):
        old = m.policy.forward_step(batch)
        m.policy.train_step(batch, old)
        new = m.policy.forward_step(batch)
        m.value.train_step(new)

    return flow


@form("one trainer learns from what the other has become", "policy policy value value policy")
def _(m):
    def flow(batch):
        m.policy.train_step(batch)
        m.value.train_step(m.policy.forward_step(batch))
        m.policy.train_step(m.value.forward_step(batch))

    return flow


@form("training after another training", "value policy")
def _(m):
    def flow(batch):
        updated = m.value.train_step(batch)
        with after(updated):
            m.policy.train_step(batch)

    return flow


@form("functools.partial, a closure and a method", "reward value policy")
def _(m):
    class Schedule:
        def __init__(self, actor):
            self.actor = actor

        def train(self, critic, batch):
            scored = m.reward.eval_step(batch)

            def update(module):
                module.train_step(batch, scored)

            update(critic)
            update(self.actor)

    return functools.partial(Schedule(m.policy).train, m.value)


@form("an inference step that nobody reads", "reward policy")
def _(m):
    def flow(batch):
        m.reward.forward_step(batch)
        m.policy.train_step(batch)

    return flow
