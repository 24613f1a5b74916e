"""A module's own settings: keys that are attributes too."""

from __future__ import annotations

import copy

import pytest

from chatlearn.modules.settings import Settings


def test_keys_are_attributes_in_nested_dicts_as_well() -> None:
    settings = Settings({"lr": 0.5, "decay": {"steps": 3}, "items": [1]})
    assert settings.lr == settings["lr"] == 0.5
    assert settings.decay.steps == 3
    assert settings["items"] == [1]
    assert settings == {"lr": 0.5, "decay": {"steps": 3}, "items": [1]}
    assert copy.deepcopy(settings).decay.steps == 3


def test_a_nested_dict_is_one_dict_whichever_way_it_is_read() -> None:
    given = {"optimizer": {"lr": 0.5, "betas": {"first": 0.9}}}
    settings = Settings(given)
    assert settings.optimizer.pop("lr") == 0.5
    settings["optimizer"]["betas"]["first"] = 0.8
    assert settings == {"optimizer": {"betas": {"first": 0.8}}}
    assert settings.optimizer.betas.first == 0.8
    assert given == {"optimizer": {"lr": 0.5, "betas": {"first": 0.9}}}


def test_a_setting_that_is_not_there_names_the_nearest_or_all() -> None:
    with pytest.raises(
        AttributeError, match=r"no setting 'learnig_rate' under models\.<name>\.args; did you mean 'learn"
    ):
        _ = Settings({"learning_rate": 1}).learnig_rate
    with pytest.raises(AttributeError, match="there are lr, beta"):
        _ = Settings({"lr": 1, "beta": 2}).seed
    with pytest.raises(AttributeError, match="there are none"):
        _ = Settings().seed
    assert getattr(Settings(), "seed", 7) == 7


def test_an_attribute_that_is_set_is_the_key_and_nested_dicts_stay_settings() -> None:
    settings = Settings({"lr": 1})
    settings.lr = 5
    settings["decay"] = {"steps": 3}
    settings.stages = [{"lr": 1}]
    assert settings == {"lr": 5, "decay": {"steps": 3}, "stages": [{"lr": 1}]}
    assert (settings.decay.steps, settings.stages[0].lr, settings.copy().decay.steps) == (3, 1, 3)


def test_settings_and_configurations_are_written_as_plain_yaml() -> None:
    import yaml

    from chatlearn import Config

    args = {"decay": {"steps": [1, 2]}, "lr": 0.5}
    config = Config(models={"a": {"args": args}})
    assert config.to_yaml()
    for value in (Settings(args), config.models["a"].args):
        for dump in (yaml.safe_dump, yaml.dump):
            assert yaml.safe_load(dump(value)) == args
