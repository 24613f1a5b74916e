"""What a user writes in a module, and what a module object is in the driver. Steps inside of flows: tests/flow;
what a step gets and may return when a worker runs it: tests/runtime.
"""

from __future__ import annotations

import copy
import functools
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import chatlearn
from chatlearn import BaseModule, step
from chatlearn.errors import ChatLearnError, MissingStepError, ModuleError
from chatlearn.modules.base import describe, take_ownership
from chatlearn.modules.noise import uniforms


class Adder(BaseModule):
    def forward_step(self, data, iteration=0, amount=1):
        return {"y": [x + amount for x in data["x"]], "iteration": iteration}

    def train_step(self, data, train_info):
        return [len(micro_batch["x"]) for micro_batch in data], train_info["iteration"]

    @step
    def compare(self, first, second):
        return {"keys": (sorted(first), sorted(second))}


# ---------------------------------------------------------------------------------------------- construction and name


def test_the_skeleton_of_the_seed_document_whose_init_does_not_call_super():
    class PolicyInference(chatlearn.RLHFModule):
        def __init__(self, name):
            """model name"""

        def forward_step(self, data, iteration=0):
            return dict(data)

    policy = PolicyInference("policy")
    assert policy.name == "policy"
    assert policy.forward_step({"x": [1]}) == {"x": [1]}
    assert describe(policy).args == ("policy",)


def test_without_super_an_own_init_may_use_attributes_and_defaults():
    class Policy(BaseModule):
        def __init__(self, name="policy", temperature=1.0):
            self.temperature = temperature

    assert (Policy().name, Policy(temperature=0.5).temperature) == ("policy", 0.5)


def test_the_name_that_super_gets_wins():
    class Policy(BaseModule):
        def __init__(self, name):
            super().__init__(f"{name}_model")

    assert Policy("policy").name == "policy_model"


def test_a_name_passed_on_through_star_args():
    class Policy(BaseModule):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    assert (Policy("a").name, Policy(name="b").name) == ("a", "b")


def test_a_module_without_any_name_says_so_when_asked():
    class Policy(BaseModule):
        def __init__(self, size):
            self.size = size

    with pytest.raises(ModuleError, match=r"Policy has no name.*parameter `name`"):
        Policy(3).name  # noqa: B018 - reading it is what is tested


@pytest.mark.parametrize("name", ["", " policy", "a/b", "a\\b", "a.b", "a,b", 3, None])
def test_names_that_can_not_name_a_section_or_a_folder(name):
    with pytest.raises(ModuleError, match="a module's name is a non-empty string") as caught:
        Adder(name)
    assert isinstance(caught.value, ChatLearnError)


def test_wrong_constructor_arguments_are_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        Adder("adder", size=3)


def test_the_description_holds_class_arguments_and_name():
    class Policy(BaseModule):
        def __init__(self, path, *, size, name="policy"):
            super().__init__(name)
            path.append("changed by __init__")

    path = ["x"]
    description = describe(Policy(path, size=3))
    assert description.module_class is Policy
    assert description.args == (path,)
    assert description.kwargs == {"size": 3}
    assert description.name == "policy"


# ------------------------------------------------------------------------------------------------------------ ownership


def test_setting_attributes_is_free_until_an_engine_owns_the_module():
    adder = Adder("adder")
    adder.size = 3
    take_ownership(adder)
    assert adder.size == 3
    with pytest.raises(ModuleError, match=r"adder\.size is set after an Engine took the module") as caught:
        adder.size = 4
    assert "set it in setup()" in str(caught.value)
    assert adder.size == 3


def test_an_owned_module_does_not_lock_others_of_its_class():
    first, second = Adder("first"), Adder("second")
    take_ownership(first)
    second.size = 3
    assert second.size == 3


@pytest.mark.parametrize(
    "value", [torch.nn.Linear(1, 1), torch.nn.Parameter(torch.ones(1))], ids=["model", "parameter"]
)
def test_parameters_made_in_the_constructor_draw_a_warning(value):
    class Policy(BaseModule):
        def __init__(self, name):
            super().__init__(name)
            self.weights = value

    with pytest.warns(UserWarning, match=r"Policy\.__init__ makes parameters \(weights\).*setup\(\)"):
        take_ownership(Policy("policy"))


def test_light_attributes_draw_no_warning():
    adder = Adder("adder")
    adder.sizes, adder.rate, adder.table = [1, 2], 0.5, np.ones(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_ownership(adder)


# ------------------------------------------------------------------------------------- steps called with real data


def test_a_step_called_with_real_data_just_runs():
    adder = Adder("adder")
    assert adder.forward_step({"x": [1, 2]}) == {"y": [2, 3], "iteration": 0}
    assert adder.forward_step({"x": [1]}, iteration=5, amount=10) == {"y": [11], "iteration": 5}
    assert adder.forward_step({"x": [1]}, 5) == {"y": [2], "iteration": 5}
    assert adder.forward_step(data={"x": [1]}) == {"y": [2], "iteration": 0}
    assert adder.train_step([{"x": [1, 2]}, {"x": [3]}], {"iteration": 4}) == ([2, 1], 4)


def test_several_dicts_are_merged_as_in_a_flow_and_later_ones_win():
    adder = Adder("adder")
    first, second = {"x": [1], "z": [0]}, {"x": [5]}
    assert adder.forward_step(first, second)["y"] == [6]
    assert adder.forward_step(second, first, 3) == {"y": [2], "iteration": 3}
    assert (first, second) == ({"x": [1], "z": [0]}, {"x": [5]})


def test_a_step_with_several_data_parameters_gets_them_apart():
    assert Adder("adder").compare({"a": 1}, {"b": 2}) == {"keys": (["a"], ["b"])}


def test_an_exception_of_a_step_called_directly_is_the_users_own():
    with pytest.raises(KeyError, match="x"):
        Adder("adder").forward_step({})


def test_a_step_keeps_name_and_docstring():
    class Policy(BaseModule):
        def forward_step(self, data):
            """Does it."""

    assert Policy.forward_step.__doc__ == "Does it."
    assert Policy.forward_step.__name__ == "forward_step"


def doubled(function):
    @functools.wraps(function)
    def wrapper(self, *args, **kwargs):
        return {key: [2 * x for x in value] for key, value in function(self, *args, **kwargs).items()}

    return wrapper


def test_decorators_and_mixins_run_around_the_step():
    class Plus:
        def forward_step(self, data):
            return {"x": [x + 1 for x in super().forward_step(data)["x"]]}

    class Base(BaseModule):
        @doubled
        def forward_step(self, data):
            return {"x": data["x"]}

    class Both(Plus, Base):
        pass

    assert Base("base").forward_step({"x": [1]}, {"x": [3]}) == {"x": [6]}
    assert Both("both").forward_step({"x": [1]}, {"x": [3]}) == {"x": [7]}


def test_a_subclass_may_wrap_the_step_of_its_parent():
    """functools.wraps copies the marks of what it wraps; the subclass's own code must run all the same."""

    class Base(BaseModule):
        def forward_step(self, data):
            return {"x": data["x"]}

    class Child(Base):
        forward_step = doubled(Base.forward_step)

    class Grandchild(Child):
        pass

    for cls in (Child, Grandchild):
        assert cls("child").forward_step({"x": [1]}, {"x": [3]}) == {"x": [6]}
        assert cls._step_functions["forward_step"](cls("child"), {"x": [3]}) == {"x": [6]}


def test_an_override_replaces_the_step_and_may_call_super():
    class Child(Adder):
        def forward_step(self, data, iteration=0):
            return {"y": [10 * y for y in super().forward_step(data)["y"]]}

    assert Child("child").forward_step({"x": [1]}) == {"y": [20]}


def test_an_override_of_a_marked_method_is_a_step_without_a_mark():
    class Child(Adder):
        def compare(self, first, second):
            return {"child": True}

    assert "compare" in Child._step_functions
    assert Child("child").compare({}, {}) == {"child": True}


def test_a_missing_step_names_class_module_and_what_there_is():
    class Frozen(Adder):
        train_step = None

    class Empty(BaseModule):
        pass

    with pytest.raises(
        MissingStepError, match=r"Adder \(module 'adder'\) has no eval_step.*forward_step, train_step, compare"
    ):
        Adder("adder").eval_step({})
    with pytest.raises(MissingStepError, match="no steps yet"):
        Empty("empty").forward_step({})
    assert "train_step" not in Frozen._step_functions


def test_hasattr_and_misspelt_attributes_behave_as_in_python():
    adder = Adder("adder")
    assert not hasattr(adder, "eval_step")
    assert not hasattr(adder, "build_dataset")
    with pytest.raises(AttributeError, match="'Adder' object has no attribute 'sizes'"):
        adder.sizes  # noqa: B018 - reading it is what is tested


# --------------------------------------------------------------------------------------------- what is there on self


def test_defaults_of_a_module_that_no_engine_runs():
    adder = Adder("adder")
    assert adder.model_args == {}
    assert (adder.replica_id, adder.rank, adder.world_size) == (0, 0, 1)
    assert adder.batch.sample_ids == ()
    assert isinstance(adder.device, torch.device)
    assert (Adder.mutates_inputs, Adder.stateful) == (False, False)


def test_all_reduce_is_the_identity_at_world_size_one():
    x = torch.randn(3)
    assert Adder("adder").all_reduce(x) is x


def test_uniforms_do_not_touch_the_global_generators():
    state = torch.get_rng_state()
    noise = Adder("adder").uniforms([3, 4], 5)
    assert noise.shape == (2, 5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [1, 0.5, True, np.float32(2), np.array(1.0), torch.tensor(3.0), torch.tensor(2)])
def test_log_takes_numbers_and_scalars(value):
    adder = Adder("adder")
    adder.log("loss", value, "max")
    assert adder._context.metrics == [("loss", value, "max")]


@pytest.mark.parametrize("value", [None, "1", [1.0], torch.ones(3), np.ones(1), {"a": 1}])
def test_log_refuses_what_is_no_number(value):
    with pytest.raises(ModuleError, match=r"adder\.log\('loss'\): a metric is one number"):
        Adder("adder").log("loss", value)


def test_log_refuses_an_unknown_reduction():
    with pytest.raises(ModuleError, match="'mean', 'sum', 'max' or 'min', not 'median'"):
        Adder("adder").log("loss", 1.0, "median")


# ------------------------------------------------------------------------------------------------------------- state


class Trained(BaseModule):
    def setup(self):
        self.model = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=1, gamma=0.5)
        self.steps = 0

    def update(self):
        self.optimizer.zero_grad()
        self.model(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()
        self.scheduler.step()


def test_the_state_is_every_attribute_that_can_save_itself():
    module = Trained("trained")
    module.setup()
    assert list(module.state_dict()) == ["model", "optimizer", "scheduler"]


def test_a_module_that_takes_a_state_goes_on_as_the_one_that_gave_it():
    first, second = Trained("first"), Trained("second")
    first.setup()
    second.setup()
    first.update()
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch hands out its own tensors
    first.update()
    second.update()
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.scheduler.get_last_lr() == [0.1 * 0.5**2]


def test_a_state_with_an_attribute_that_setup_did_not_make_is_refused():
    first, second = Trained("first"), Trained("second")
    first.setup()
    with pytest.raises(ModuleError, match="second: the checkpoint holds model, optimizer, scheduler"):
        second.load_state_dict(first.state_dict())


def test_a_method_of_the_parent_under_a_second_name_is_a_step_of_that_name():
    class Parent(BaseModule):
        def forward_step(self, data):
            return {"who": ["parent"]}

    class Child(Parent):
        def forward_step(self, data):
            return {"who": ["child"]}

        eval_step = Parent.forward_step

    child = Child("child")
    graph = chatlearn.flow.trace(lambda batch: (child.forward_step(batch), child.eval_step(batch)))
    assert [node.step for node in graph] == ["forward_step", "eval_step"]
    assert child.eval_step({"x": [1]}) == {"who": ["parent"]}
    assert child._step_functions["eval_step"](child, {"x": [1]}) == {"who": ["parent"]}


def test_what_is_put_is_a_copy():
    adder, weight = Adder("adder"), torch.ones(2, requires_grad=True)
    array, entries, tensor = np.zeros(2), [1, {"deep": [2]}], weight * 2
    adder.put("all", {"array": array, "entries": entries, "tensor": tensor, "pair": (tensor, 1)})
    array += 1
    entries[1]["deep"].append(3)
    tensor.detach().zero_()
    ((key, value),) = adder._context.puts
    assert key == "all"
    assert value["array"].tolist() == [0, 0]
    assert value["entries"] == [1, {"deep": [2]}]
    assert [part.tolist() for part in (value["tensor"], value["pair"][0])] == [[2, 2], [2, 2]]
    assert not value["tensor"].requires_grad
    assert value["pair"][1] == 1


def test_what_cannot_be_copied_cannot_be_put():
    with pytest.raises(ModuleError, match=r"adder\.put\('stream', …\): generator can't be copied"):
        Adder("adder").put("stream", (i for i in ()))


def test_noise_belongs_to_the_function_that_runs_on_a_thread():
    """A hook's seed is its call's, a step's is its own; threads that a step starts itself share that of the step."""
    adder = Adder("adder")
    context = adder._context
    context.enter(11, noise_seed=12)
    assert adder.uniforms([5], 3).equal(uniforms(12, [5], 3))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(adder.uniforms, [5], 3).result().equal(uniforms(12, [5], 3))
        pool.submit(context.enter, 13).result()
        assert pool.submit(adder.uniforms, [5], 3).result().equal(uniforms(13, [5], 3))
    assert adder.uniforms([5], 3).equal(uniforms(12, [5], 3))
    context.enter(14)
    assert adder.uniforms([5], 3).equal(uniforms(14, [5], 3))
