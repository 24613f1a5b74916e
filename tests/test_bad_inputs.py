"""Bad input gets an error that says what, where and how to fix it, before anything starts where that is possible.

Each case gives the words that its message has to hold. Problems of the configuration alone: ``tests/config``.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import toys

import chatlearn
from chatlearn import (
    BaseModule,
    ChatLearnError,
    ConfigError,
    DataError,
    Engine,
    EngineError,
    Environment,
    Evaluator,
    FlowError,
    MissingStepError,
    ModuleError,
    StepError,
    SyncError,
    Trainer,
)


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path) -> Iterator[None]:
    toys.EVENTS.clear()
    chatlearn.init(toys.settings(tmp_path))
    with toys.quick_runs():
        yield


class Echo(BaseModule):
    """Records that it started, and gives back what it gets."""

    def setup(self) -> None:
        toys.EVENTS.append((f"{self.name}.setup",))

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        return data

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        return None


def _engine(*modules: BaseModule, prompts: Any = (1, 2, 3)) -> Engine:
    """An engine whose environment passes the batch through all modules."""

    def env_flow(batch: Any) -> Any:
        for module in modules:
            batch = module.forward_step(batch)
        return batch

    engine = Engine(Environment(env_flow))
    return engine if prompts is None else engine.set_dataset(prompts)


def _refused(engine: Engine, kind: type[ChatLearnError], *words: str, folder: Path) -> None:
    """``learn()`` and ``check()`` say the same, and nothing has started: no module, no folder."""
    for attempt in (engine.check, engine.learn):
        with pytest.raises(kind) as caught:
            attempt()
        for word in words:
            assert word in str(caught.value)
    assert toys.EVENTS == []
    assert [path.name for path in folder.iterdir() if path.suffix != ".yaml"] == []


def _fails(engine: Engine, kind: type[ChatLearnError], *words: str) -> ChatLearnError:
    with pytest.raises(kind) as caught:
        engine.learn()
    for word in words:
        assert word in str(caught.value)
    return caught.value


def _here(function: Callable[..., Any], text: str) -> str:
    """``file:line`` of the line of a function that contains the text."""
    lines, first = inspect.getsourcelines(function)
    return f"{__file__}:{first + next(i for i, line in enumerate(lines) if text in line)}"


# -- configuration ----------------------------------------------------------------------------------------------------


def test_mistyped_keys_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("runtime:\n  num_episod: 3\n  seed: many\nmodels:\n  policy:\n    num_replicas: 2\n")
    with pytest.raises(ConfigError) as caught:
        chatlearn.init(path)
    text = str(caught.value)
    assert text.startswith("3 problems")
    for word in ("my.yaml:2", "`num_episode`", "my.yaml:3", "my.yaml:6", "`num_replica`"):
        assert word in text


def test_mistyped_settings_of_modules_all_at_once(tmp_path: Path) -> None:
    class Configured(Echo):
        class Args(pydantic.BaseModel):
            temperature: float = 1.0
            top_k: int = 0

    args = {"temprature": 0.5, "top_k": "many"}
    chatlearn.init({**toys.settings(tmp_path), "models": {"one": {"args": args}, "tow": {}}})
    _refused(
        _engine(Configured("one"), Echo("two")),
        ConfigError,
        "3 problems",
        "models.one.args.temprature",
        "`temperature`",
        "models.one.args.top_k",
        "`two` has no entry under models",
        "`tow`",
        folder=tmp_path,
    )


def test_a_global_batch_that_is_no_multiple(tmp_path: Path) -> None:
    words = r"multiple of train_micro_batch_size, which is 8; got 20\s+Fix: set it to 16 or 24"
    with pytest.raises(ConfigError, match=words):
        chatlearn.init(toys.settings(tmp_path, train_micro_batch_size=8, train_global_batch_size=20))


def test_no_configuration_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    from chatlearn.config import active

    monkeypatch.setattr(active._active, "config", None)
    with pytest.raises(ConfigError, match=r"chatlearn\.init\(\)"):
        _engine(Echo("a")).learn()


def test_exporting_what_cannot_be_exported(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path, export=["echo"]))
    _refused(
        _engine(Echo("echo")), ConfigError, "runtime.export", "Echo (module 'echo')", "export(path)", folder=tmp_path
    )


def test_exporting_a_module_that_no_flow_uses(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path, export=["polcy"]))
    _refused(_engine(toys.Policy("policy")), ConfigError, "runtime.export", "polcy", "policy", folder=tmp_path)


@pytest.mark.parametrize("absent", ["absent/model", "/absent/model", "~/absent-model-folder"])
def test_a_missing_model_folder(absent: str, tmp_path: Path) -> None:
    from chatlearn.modules.torch import PolicyInference

    path = str(tmp_path / absent) if absent == "absent/model" else absent
    chatlearn.init({**toys.settings(tmp_path), "models": {"policy": {"args": {"model_path": path}}}})
    wanted = str(Path(path).expanduser())
    words = ("models.policy.args.model_path", f"no folder {wanted}", "give an existing model folder")
    _refused(_engine(PolicyInference("policy")), ConfigError, *words, folder=tmp_path)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    from chatlearn.modules.torch import PolicyInference

    model = tmp_path / "empty.yaml"
    model.mkdir()
    chatlearn.init({**toys.settings(tmp_path), "models": {"policy": {"args": {"model_path": str(model)}}}})
    _refused(
        _engine(PolicyInference("policy")), ConfigError, "holds no config.json", "save_pretrained", folder=tmp_path
    )


# -- flows and modules ------------------------------------------------------------------------------------------------


def test_a_flow_that_branches_on_data() -> None:
    policy = toys.Policy("policy")

    def flow(batch: Any) -> Any:
        out = policy.forward_step(batch)
        if out["action"].mean() > 0:
            return out
        return policy.eval_step(out)

    with pytest.raises(FlowError) as caught:
        Environment(flow)
    for word in (_here(flow, "if out"), "truth value", "policy.forward_step", "@chatlearn.step", "configuration"):
        assert word in str(caught.value)


@pytest.mark.parametrize("executor", [Environment, Trainer, Evaluator])
def test_a_module_without_the_step(executor: Any) -> None:
    module = Echo("echo")
    with pytest.raises(MissingStepError) as caught:
        executor(lambda batch: module.eval_step(batch))
    for word in ("Echo (module 'echo') has no eval_step", "def eval_step(self, data, …)", "forward_step, train_step"):
        assert word in str(caught.value)


@pytest.mark.parametrize("executor", [Environment, Evaluator])
def test_training_outside_of_a_trainer(executor: Any) -> None:
    module = Echo("echo")
    with pytest.raises(FlowError, match=r"test_bad_inputs\.py:\d+: echo\.train_step.*Trainer"):
        executor(lambda batch: module.train_step(batch))


def test_two_modules_of_one_name(tmp_path: Path) -> None:
    words = ("two modules are called 'policy'", "Echo and Policy", "models.<name>", "rename one", f"{__file__}:")
    _refused(_engine(Echo("policy"), toys.Policy("policy")), ModuleError, *words, folder=tmp_path)


@pytest.mark.parametrize("name", ["", " a", "a/b", "a.b", "a,b", None, 3])
def test_names_that_cannot_be(name: Any) -> None:
    with pytest.raises(ModuleError, match=r"Echo: a module's name is .*models\.<name>"):
        Echo(name)


def test_an_environment_that_yields_nothing_to_its_trainer(tmp_path: Path) -> None:
    one, two = Echo("one"), Echo("two")

    def env_flow(batch: Any) -> None:
        one.forward_step(batch)

    engine = Engine(Environment(env_flow), Trainer(lambda batch: two.train_step(batch))).set_dataset([1])
    _refused(engine, FlowError, "env_flow returns nothing", _here(env_flow, "def "), "return ", folder=tmp_path)


def test_setting_an_attribute_after_the_engine_took_the_module() -> None:
    module = Echo("echo")
    module.before = 1  # type: ignore[attr-defined]
    _engine(module).learn()
    with pytest.raises(ModuleError, match=r"echo\.scale is set after an Engine took the module.*models\.echo\.args"):
        module.scale = 2  # type: ignore[attr-defined]


# -- data -------------------------------------------------------------------------------------------------------------


def test_a_missing_data_set(tmp_path: Path) -> None:
    words = ("env_flow has no data set", "engine.set_dataset(prompts)")
    _refused(_engine(Echo("echo"), prompts=None), EngineError, *words, folder=tmp_path)
    echo = Echo("echo")
    trainer = Trainer(lambda batch: echo.train_step(batch))
    _refused(Engine(None, trainer), EngineError, "no data set", "engine.set_dataset(prompts)", folder=tmp_path)
    engine = _engine(echo).set_evaluator(Evaluator(lambda batch: echo.forward_step(batch)))
    _refused(engine, EngineError, "no data set", "Evaluator(…).set_dataset(prompts)", folder=tmp_path)


@pytest.mark.parametrize("prompts", [[], (), range(0), np.zeros(0)])
def test_an_empty_data_set(prompts: Any, tmp_path: Path) -> None:
    words = ("data set of env_flow is empty", "at least one prompt")
    _refused(_engine(Echo("echo"), prompts=prompts), DataError, *words, folder=tmp_path)


@pytest.mark.parametrize("prompts", [iter([1]), {1, 2}, 5])
def test_prompts_that_are_no_sequence(prompts: Any, tmp_path: Path) -> None:
    words = (f"are {type(prompts).__name__}", "sequence with a length")
    _refused(_engine(Echo("echo"), prompts=prompts), DataError, *words, folder=tmp_path)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ([], ["echo.build_dataset returns an empty data set for 3 prompts"]),
        (None, ["echo.build_dataset returns NoneType", "torch.utils.data.Dataset"]),
        (iter([1]), ["list_iterator", "no __getitem__ and __len__"]),
        ([{"x": torch.zeros(2)}, {"x": torch.zeros(3)}], ["collating fails", "collate_fn", "pad"]),
        ([1.0, 2.0], ["collating gives Tensor", "dict"]),
    ],
)
def test_data_sets_that_a_module_builds(dataset: Any, words: list[str]) -> None:
    class Building(Echo):
        def build_dataset(self, prompts: Any) -> Any:
            return dataset

    _fails(_engine(Building("echo")), DataError, *words)


def test_a_sample_that_cannot_be_read() -> None:
    class Broken:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 2:
                raise OSError("no such row")
            return {"x": index}

    class Building(Echo):
        def build_dataset(self, prompts: Any) -> Any:
            return Broken()

    error = _fails(_engine(Building("echo")), DataError, "echo[0]", "sample 2", "OSError: no such row")
    assert isinstance(error.__cause__, OSError)


# -- what a step returns, and what it does to its inputs --------------------------------------------------------------


def _returning(value: Any) -> Engine:
    class Returning(Echo):
        def forward_step(self, data: dict[str, Any]) -> Any:
            return value(data) if callable(value) else value

    return _engine(Echo("first"), Returning("second"), Echo("third"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(8), ["returns Tensor", "returns a dict"]),
        ([1, 2], ["returns list", "returns a dict"]),
        (None, ["returns nothing, but the flow uses its output", "Return a dict"]),
        ({"reward": torch.zeros(5)}, ["'reward' has 5 rows where 8 are expected", "one row per sample"]),
        ({"ok": torch.zeros(8), "text": ["a"] * 7}, ["'text' has 7 rows where 8 are expected"]),
        ({"deep": {"x": np.zeros(9)}}, ["'deep.x' has 9 rows where 8 are expected"]),
        ({"loss": torch.tensor(1.0)}, ["'loss' is Tensor without rows", "self.log('loss', …)"]),
        ({"loss": 0.5}, ["'loss' is float without rows", "self.log('loss', …)"]),
        ({"text": "one string"}, ["'text' is str without rows"]),
        ({3: torch.zeros(8)}, ["the key 3 is not a string"]),
    ],
)
def test_what_a_step_may_not_return(value: Any, words: list[str]) -> None:
    _fails(_returning(value), StepError, "second[0].forward_step", "episode 1", "batch 0", *words)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["x"].add_(1),
        lambda data: data["x"].__setitem__(0, 5.0),
        lambda data: data["nested"]["x"].zero_(),
    ],
)
def test_inputs_changed_in_place(change: Callable[[dict[str, Any]], Any]) -> None:
    class Making(Echo):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            rows = len(data["prompt"])
            return {"x": torch.ones(rows), "nested": {"x": torch.ones(rows)}, "array": np.ones(rows)}

    class Changing(Echo):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            change(data)
            return data

    class Allowed(Changing):
        mutates_inputs = True

    words = ("second[0].forward_step changes its input", "x'", "in place", "episode 1", ".clone()", "mutates_inputs")
    _fails(_engine(Making("first"), Changing("second")), StepError, *words)
    _engine(Making("first"), Allowed("second")).learn()


def test_an_array_changed_in_place() -> None:
    class Making(Echo):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            return {"array": np.ones(len(data["prompt"]))}

    class Changing(Echo):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            data["array"][0] = 2
            return data

    error = _fails(_engine(Making("first"), Changing("second")), StepError, "read-only", "second[0].forward_step")
    assert isinstance(error.__cause__, ValueError)


def test_a_steps_own_dict_and_lists_may_be_changed() -> None:
    class Changing(Echo):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            data["prompt"].append("more")
            data.clear()
            return {"x": torch.zeros(len(self.batch))}

    class Reading(Echo):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            toys.EVENTS.append(("read", len(data["prompt"]), "more" in data["prompt"]))
            return data

    one, two = Changing("one"), Reading("two")

    def flow(batch: Any) -> Any:
        one.forward_step(batch)
        return two.forward_step(batch)

    Engine(Environment(flow)).set_dataset([1, 2, 3]).learn()
    assert set(toys.events("read")) == {("read", 8, False), ("read", 4, False)}


# -- weights ----------------------------------------------------------------------------------------------------------


class Linear(Echo):
    """A module with a model of the given sizes, or with none."""

    def __init__(self, name: str, *sizes: int) -> None:
        super().__init__(name)
        self.sizes = sizes

    def setup(self) -> None:
        self.model = torch.nn.Sequential(*(torch.nn.Linear(a, 1) for a in self.sizes)) if self.sizes else None


def _synced(source: Linear, destination: Linear) -> Engine:
    engine = Engine(
        Environment(lambda batch: destination.forward_step(batch)), Trainer(lambda batch: source.train_step(batch))
    )
    return engine.set_parameter_sync(source, destination).set_dataset([1, 2])


def test_a_sync_of_unequal_shapes_lists_them_all() -> None:
    words = (
        "weights of trained do not fit rollout",
        "0.weight is [1, 2] in trained and [1, 3] in rollout",
        "1.weight [1, 4] is missing in rollout",
        "1.bias [1] is missing in rollout",
        "Build both from the same model",
    )
    _fails(_synced(Linear("trained", 2, 4), Linear("rollout", 3)), SyncError, *words)
    assert toys.events("rollout.forward_step") == []


def test_a_sync_with_parameters_on_one_side() -> None:
    words = ("trained -> rollout", "rollout has no parameters", "rollout.setup()", "set_parameter_sync")
    _fails(_synced(Linear("trained", 2), Linear("rollout")), SyncError, *words)


def test_a_sync_without_parameters_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    _synced(Linear("trained"), Linear("rollout")).learn()
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(notes) == 1
    assert "trained -> rollout" in notes[0]


def test_a_sync_with_a_module_that_no_flow_uses(tmp_path: Path) -> None:
    engine = _engine(Echo("used")).set_parameter_sync(Echo("stranger"), Echo("used"))
    words = ("set_parameter_sync(stranger, used)", "no flow of this engine", "'stranger'", "the flows use used")
    _refused(engine, FlowError, *words, folder=tmp_path)


# -- a user's own exceptions ------------------------------------------------------------------------------------------


class MineError(Exception):
    """An exception of the user's own."""


def _deep(data: dict[str, Any]) -> None:
    raise MineError("my words")


class Failing(toys.Policy):
    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        if iteration == 4:
            _deep(data)
        return super().forward_step(data, iteration)


def test_a_step_that_raises(tmp_path: Path) -> None:
    """The second batch of the second episode, on the replica whose turn it was: 4 mod 3."""
    config = toys.settings(tmp_path)
    config["models"] = {"policy": {"num_replica": 3}, "reward": {}, "learner": {}}
    chatlearn.init(config)
    words = (
        "MineError: my words",
        "policy[1].forward_step",
        "rank 0",
        "episode 2",
        "batch 4",
        "sample ids [28, 29, 30, 31, 32, 33, 34, 35]",
    )
    error = _fails(toys.make_engine(Failing), StepError, *words)
    assert isinstance(error.__cause__, MineError)
    text = "".join(traceback.format_exception(error))
    assert text.index("in _deep") < text.index("MineError: my words") < text.index("StepError")


def test_a_train_step_that_raises() -> None:
    class FailingLearner(toys.Learner):
        def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
            if train_info["iteration"] == 5:
                raise MineError("no gradient")

    learner = FailingLearner("learner")
    engine = Engine(None, Trainer(lambda batch: learner.train_step(batch))).set_dataset(range(9))
    # 3 global batches an episode: iteration 5 is the last, of 4 samples, in the second
    words = (
        "MineError: no gradient",
        "learner[0].train_step",
        "episode 2",
        "global batch 5",
        "sample ids [36, 37, 38, 39]",
    )
    assert isinstance(_fails(engine, StepError, *words).__cause__, MineError)


@pytest.mark.parametrize("method", ["setup", "before_episode", "after_episode", "build_dataset"])
def test_other_methods_that_raise(method: str) -> None:
    def failing(self: BaseModule, *args: Any) -> None:
        raise MineError("my words")

    module = type("Broken", (Echo,), {method: failing})("echo")
    words = ["MineError: my words", f"echo[0].{method}", *(["episode 1"] if "episode" in method else [])]
    error = _fails(_engine(module), StepError, *words)
    assert isinstance(error.__cause__, MineError)


def test_an_evaluation_that_raises() -> None:
    class FailingEcho(Echo):
        def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
            raise MineError("my words")

    module = FailingEcho("echo")
    evaluator = Evaluator(lambda batch: module.eval_step(batch)).set_dataset([1, 2])
    engine = Engine(None, None, evaluator)
    _fails(
        engine, StepError, "MineError: my words", "echo[0].eval_step", "evaluation after episode 1", "sample ids [0, 1]"
    )


def test_an_exception_of_a_flow_itself_passes_through() -> None:
    def flow(batch: Any) -> Any:
        raise MineError("in the flow")

    with pytest.raises(MineError, match="in the flow"):
        Environment(flow)
