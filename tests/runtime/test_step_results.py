"""What a step may return and log on every cluster, and in what form it comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runtime_cases import Returning, apply, run, run_both, spawn

from chatlearn import BaseModule
from chatlearn.errors import StepError
from chatlearn.runtime.batches import normalise

# ----------------------------------------------------------------------------------------------- what a step may return


def odd_forms(data):
    with torch.inference_mode():
        inference = torch.ones(2, 3)
    return {
        "graph": torch.ones(2, requires_grad=True) * 2,
        "transposed": torch.arange(6).reshape(3, 2).T,
        "expanded": torch.ones(1, 3).expand(2, 3),
        "inference": inference,
        "tuple": (1, 2),
        "array": np.arange(6).reshape(3, 2).T,
        "nested": {"graph": torch.ones(2, 2, requires_grad=True).T},
        "entries": [torch.ones(2, requires_grad=True) * 3, "a"],
    }


def test_results_are_detached_contiguous_and_outside_of_inference_mode(cluster):
    output = run(cluster, spawn(cluster, Returning("odd", odd_forms)), {"x": [0, 0]})
    tensors = [
        output["graph"], output["transposed"], output["expanded"], output["inference"], output["nested"]["graph"],
        output["entries"][0],
    ]  # fmt: skip
    for tensor in tensors:
        assert (tensor.requires_grad, tensor.is_contiguous(), tensor.is_inference()) == (False, True, False)
    assert output["transposed"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert output["array"].flags.c_contiguous
    assert output["array"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert output["tuple"] == [1, 2]
    assert output["entries"][1] == "a"


def test_results_hold_the_numbers_that_conjugate_and_negative_tensors_stand_for(cluster):
    def lazy(data):
        numbers = torch.tensor([1 + 2j, 3 - 4j])
        return {
            "conjugate": numbers.conj(),
            "nested": {"negative": numbers.conj().imag},
            "entries": [numbers.conj(), numbers.conj().imag],
            "deeper": [[numbers.conj()], {"negative": numbers.conj().imag}],
        }

    output = run(cluster, spawn(cluster, Returning("lazy", lazy)), {"x": [0, 0]})
    conjugate, negative = [1 - 2j, 3 + 4j], [-2.0, 4.0]
    columns = [output["conjugate"], output["nested"]["negative"], *output["entries"]]
    assert [tensor.numpy().tolist() for tensor in columns] == [conjugate, negative, conjugate, negative]
    assert output["deeper"][0][0].tolist() == conjugate
    assert output["deeper"][1]["negative"].tolist() == negative


def test_what_a_module_does_to_its_own_containers_later_does_not_reach_a_result(cluster):
    class Keeping(BaseModule):
        def forward_step(self, data):
            self.kept = {"names": ["a"], "nested": {"n": ["b"]}}
            return self.kept

    handle = spawn(cluster, Keeping("keeping"))
    output = run(cluster, handle, {"x": [0]})
    apply(cluster, handle, lambda module: [part.clear() for part in module.kept.values()])
    assert output == {"names": ["a"], "nested": {"n": ["b"]}}


WRONG = {
    "list": (lambda data: [1, 2], "returns list, but a step returns a dict"),
    "tensor": (lambda data: torch.ones(2), "returns Tensor, but a step returns a dict"),
    "nothing": (lambda data: None, "returns nothing, but the flow uses its output"),
    "number": (lambda data: {"loss": 0.5}, "'loss' is float without rows"),
    "0-d tensor": (lambda data: {"loss": torch.tensor(0.5)}, "'loss' is Tensor without rows"),
    "0-d array": (lambda data: {"loss": np.array(0.5)}, "'loss' is ndarray without rows"),
    "text": (lambda data: {"response": "ab"}, "'response' is str without rows"),
    "too few rows": (lambda data: {"a": [1, 2], "x": torch.ones(1, 2)}, "'x' has 1 rows where 2 are expected"),
    "too many rows": (lambda data: {"x": [1, 2, 3]}, "'x' has 3 rows where 2 are expected"),
    "nested rows": (lambda data: {"m": {"x": np.ones(3)}}, "'m.x' has 3 rows where 2 are expected"),
    "key": (lambda data: {3: [1, 2]}, "the key 3 is not a string"),
}


@pytest.mark.parametrize(("make", "words"), WRONG.values(), ids=WRONG)
def test_a_result_that_is_no_batch_of_the_same_rows(cluster, make, words):
    handle = spawn(cluster, Returning("reward", make), replica=2)
    with pytest.raises(StepError) as caught:
        run(cluster, handle, {"x": [0, 0]}, place="episode 1, batch 4")
    assert words in str(caught.value)
    assert "reward[2].forward_step (episode 1, batch 4)" in str(caught.value)


def test_wrong_rows_in_a_micro_batch(cluster):
    handle = spawn(cluster, Returning("value", lambda data: {"x": [0, 0]}))
    with pytest.raises(StepError, match=r"value\[0\]\.forward_step .*'x' has 2 rows where 1 are expected"):
        run(cluster, handle, {"x": [0, 0, 0]}, micro_batch_size=2)


def test_a_step_whose_output_nothing_reads_may_return_nothing(cluster):
    handle = spawn(cluster, Returning("logger", lambda data: None))
    assert run(cluster, handle, {"x": [0]}, used=False) is None
    assert run(cluster, handle, {"x": [0, 0]}, used=False, micro_batch_size=1) is None


def test_an_empty_dict_is_a_batch_without_keys(cluster):
    assert run(cluster, spawn(cluster, Returning("none", lambda data: {})), {"x": [0, 0]}) == {}


@given(rows=st.integers(0, 4), data=st.data())
def test_normalising_keeps_values_however_often(rows, data):
    shape = (rows, *data.draw(st.lists(st.integers(0, 3), max_size=2)))
    batch = {"t": torch.ones(shape), "n": {"a": np.ones(shape), "l": ["x"] * rows}}
    once = normalise(batch, rows)
    for result in (once, normalise(once)):
        assert torch.equal(result["t"], batch["t"])
        assert np.array_equal(result["n"]["a"], batch["n"]["a"])
        assert result["n"]["l"] == ["x"] * rows


# -------------------------------------------------------------------------------------------------------------- metrics


def test_metrics_are_numbers_under_the_modules_name_with_the_rows_of_the_call(cluster):
    class Logging(BaseModule):
        def forward_step(self, data):
            loss = torch.tensor(1.0)
            self.log("loss", loss)
            loss += 1  # a tensor is read at the end of the step
            self.log("longest", np.int64(7), "max")
            return data

    handle = spawn(cluster, Logging("policy"))
    expected = [("policy/loss", 2.0, "mean", 3), ("policy/longest", 7.0, "max", 3)]
    for _ in range(2):
        assert run_both(cluster, handle, {"x": [0, 0, 0]})[1] == expected
