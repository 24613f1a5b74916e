"""A graph as text, character by character."""

from __future__ import annotations

from flow_cases import Model

from chatlearn.flow import render, trace

policy, reward = Model("policy"), Model("reward")


def test_an_environment_flow():
    def env_flow(batch):
        out = policy.forward_step(batch, greedy=True)
        again = policy.forward_step(out, batch)
        return reward.compare(out, again, margin=0.5), out

    assert render(trace(env_flow)) == (
        "env_flow(batch)\n"
        "   1  policy.forward_step    <- batch, greedy=True\n"
        "   2  policy.forward_step#1  <- policy.forward_step + batch\n"
        "   3  reward.compare         <- policy.forward_step | policy.forward_step#1, margin=0.5\n"
        "  =>  reward.compare + policy.forward_step"
    )


def test_a_flow_that_yields_nothing():
    def trainer_flow(batch):
        policy.train_step(batch)

    assert render(trace(trainer_flow)) == (
        "trainer_flow(batch)\n   1  policy.train_step  <- batch\n  =>  nothing"
    )  # fmt: skip
