"""Forms of a flow by what is passed and what is returned: inputs, merging, results, order, modules as arguments."""

from __future__ import annotations

from flow.form_modules import table

import chatlearn
from chatlearn.flow import after

FORMS, form = table()


@form("calls one after another", "policy reference value reward")
def _(m):
    def flow(batch):
        policy_out = m.policy.forward_step(batch)
        ref_out = m.reference.forward_step(policy_out)
        value_out = m.value.forward_step(policy_out)
        reward_out = m.reward.forward_step(policy_out, ref_out, value_out)
        return reward_out  # noqa: RET504 - the form is this one

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


@form("control dependencies, by their other name", "policy value reward")
def _(m):
    def flow(batch):
        first, second = m.policy.forward_step(batch), m.value.eval_step(batch)
        with chatlearn.ControlDependencies([first, second]):
            return m.reward.forward_step(batch)

    return flow


@form("a loop over rounds of critique", "policy reward policy reward policy")
def _(m):
    def flow(batch):
        answer = m.policy.forward_step(batch)
        for rounds in range(2):
            answer = m.policy.forward_step(batch, answer, m.reward.forward_step(answer, bonus=rounds))
        return answer

    return flow


@form("two branches that meet", "policy reference value reward")
def _(m):
    def flow(batch):
        out = m.policy.forward_step(batch)
        left, right = m.reference.eval_step(out), m.value.eval_step(out)
        return m.reward.gather(left, right, left), right

    return flow
