"""Configuration models: bounds, TOML and the command line all come from the fields."""

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from globe_stream.cli.checkpoint import plan, synth
from globe_stream.cli.options import record_from
from globe_stream.cli.results import evaluate
from globe_stream.cli.runs import export, seed, train
from globe_stream.commands.wording import flag
from globe_stream.config import (
    METHOD_FACTS,
    METHODS,
    DtypeName,
    ExportConfig,
    RuntimeConfig,
    SeedConfig,
    SelectionConfig,
    SyntheticModel,
    TrainConfig,
    Windows,
    differences,
    load_toml,
    to_toml,
)
from globe_stream.config.methods import GREEDY
from globe_stream.config.runtime import OF_RUNS
from globe_stream.errors import InputError, spelled
from globe_stream.io.dtypes import DTYPES
from globe_stream.seeding.methods import REGISTRY

MODELS = (SelectionConfig, SeedConfig, TrainConfig, RuntimeConfig, SyntheticModel, Windows)


@pytest.mark.parametrize("model", MODELS)
def test_defaults_pass_their_own_checks_and_survive_toml(model):
    default = model()
    table = load_toml(to_toml({"t": default.model_dump()}), "here")["t"]
    assert model.from_mapping(table, "here") == default


@pytest.mark.parametrize("model", MODELS)
def test_every_number_is_checked_at_its_bounds(model):
    for name, spec in model.specs().items():
        for bound, outside in ((spec.low, -1), (spec.high, 1)):
            if bound is None:
                continue
            wrong = spec.kind(bound + outside)
            with pytest.raises(InputError, match=f"{name} .* out of range: at"):
                model(**{name: wrong})


@pytest.mark.parametrize("model", [*MODELS, ExportConfig])
def test_every_choice_is_accepted_and_others_refused(model):
    needed = {"format": "model", "out": Path("o")} if model is ExportConfig else {}
    for name, spec in model.specs().items():
        for choice in spec.choices:
            assert getattr(model(**{**needed, name: choice}), name) == choice
        if spec.choices:
            with pytest.raises(InputError, match=f"{name} 'no such' is not known: use one of"):
                model(**{**needed, name: "no such"})


def test_every_field_has_help():
    for model in (*MODELS, ExportConfig):
        assert all(spec.help.endswith(".") for spec in model.specs().values())


def test_names_are_written_down_once():
    assert tuple(REGISTRY) == METHODS
    assert tuple(DTYPES) == get_args(DtypeName)


def test_unknown_keys_and_wrong_types_are_named():
    with pytest.raises(InputError, match=r"recipe \[seed\]: unknown key 'rnak'; known: method, "):
        SeedConfig.from_mapping({"rnak": 3, "rank": -1}, "recipe [seed]")
    for values in ({"rank": "3"}, {"rank": 3.0}, {"rank": True}, {"bank_scope": 3}):
        with pytest.raises(InputError, match=rf"recipe: {next(iter(values))} = .*is needed"):
            SeedConfig.from_mapping(values, "recipe")
    assert SeedConfig.from_mapping({"rank_ratio": 1}, "recipe").rank_ratio == 1.0
    with pytest.raises(InputError, match="format is missing: give one of factors, dense"):
        ExportConfig.from_mapping({}, "recipe")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value):
    with pytest.raises(InputError, match=r"lambda_a \w+ is out of range: at least 0"):
        SeedConfig(lambda_a=value)


def test_toml_mistakes_name_their_place():
    with pytest.raises(InputError, match=r"my\.toml: not valid TOML"):
        load_toml("a = ", "my.toml")


def test_identity_leaves_out_how_a_run_is_carried_out():
    assert set(RuntimeConfig().identity()) == {"device"}
    assert "epochs" not in TrainConfig().identity()
    assert set(SeedConfig().identity()) == set(SeedConfig.specs())


def test_configurations_are_frozen_and_compared_by_value():
    with pytest.raises(ValueError, match="frozen"):
        SeedConfig().rank = 3
    assert SeedConfig(rank_ratio=0.75) == SeedConfig()
    assert SeedConfig(rank=3).changed(bases=4) == SeedConfig(rank=3, bases=4)
    assert SeedConfig(rank=3).changed(bases=4).model_fields_set == {"rank", "bases"}
    with pytest.raises(InputError, match="bases 0 is out of range"):
        SeedConfig().changed(bases=0)


def test_differences_are_spelled_out():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": "x", "d": None}) == [
        "b: was 2, now 'x'", "c: was 3, now not set"]  # fmt: skip


@pytest.mark.parametrize(("scope", "layers"), [("global", None), ("layer", 1), ("layers:6", 6)])
def test_bank_scopes(scope, layers):
    assert SeedConfig(bank_scope=scope).scope_layers() == layers


@pytest.mark.parametrize("scope", [
    "layers", "layers:", "layers:0", "layers:-1", "layers:x", "all", "layers:²",
    f"layers:{'9' * 99}",
])  # fmt: skip
def test_unknown_bank_scopes(scope):
    with pytest.raises(InputError, match="bank_scope"):
        SeedConfig(bank_scope=scope)


@pytest.mark.parametrize("target", ["0", "-1", "²", "9" * 5000, "few", "", "1.5"])
def test_unknown_targets_of_support(target):
    with pytest.raises(InputError, match="target_support"):
        TrainConfig(target_support=target)


def test_the_wanted_support_may_be_a_number():
    assert TrainConfig(target_support=7).support_target() == 7
    assert TrainConfig(target_support="none").support_target() is None


@pytest.mark.parametrize(("command", "models"), [
    (seed, (SelectionConfig, SeedConfig, RuntimeConfig)), (train, (TrainConfig, RuntimeConfig)),
    (plan, (SelectionConfig, SeedConfig)), (synth, (SyntheticModel,)), (evaluate, (Windows,)),
])  # fmt: skip
def test_the_command_line_has_every_field_with_its_default(command, models):
    options = {option.name: option for option in command.params}
    for model in models:
        values = {name: option.default for name, option in options.items()}
        assert record_from(model, values) == model()
        for field, spec in model.specs().items():
            name = model.prefix + field
            if field not in ("checkpoint_every", *OF_RUNS) or command is not plan:
                assert flag(name) in options[name].opts
                assert options[name].help.startswith(spelled(spec.help, flag))


def test_an_export_must_say_what_and_where():
    options = {option.name: option for option in export.params}
    assert options["format"].required
    assert options["out"].required
    assert not options["dtype"].required


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.data())
def test_any_values_are_accepted_or_refused_in_one_line(data):
    model = data.draw(st.sampled_from((*MODELS, ExportConfig)))
    keys = st.sampled_from(sorted(model.specs())) | st.text(max_size=5)
    table = data.draw(st.dictionaries(keys, values, max_size=4))
    made, said = None, ""
    try:
        made = model.from_mapping(table, "r.toml [t]")
    except InputError as error:
        said = str(error)
    if made is None:
        assert said.startswith("r.toml [t]: ")
        assert len(said.splitlines()) == 1
        assert len(said) < 1000
    else:
        assert made.model_fields_set == set(table)
        assert model(**{name: getattr(made, name) for name in model.specs()}) == made


@pytest.mark.parametrize(("given_", "named"), [
    (SeedConfig(method="ts_pca", kmeans_init="farthest", dictionary_rounds=3),
     ["kmeans_init, dictionary_rounds: without effect with method ts_pca"]),
    (SeedConfig(row_selection="random"),
     ["row_selection: without effect with procrustes proxies"]),
    (SeedConfig(method="hybrid", greedy_ridge=0.1),
     ["greedy_ridge: without effect with hybrid_variant kmeans"]),
    (SeedConfig(rank=3, rank_ratio=0.5), ["rank_ratio: without effect beside rank"]),
    (SeedConfig(method="hybrid", hybrid_variant="greedy", greedy_ridge=0.1), []),
    (SeedConfig(proxies="rows", row_subset=3), []),
    (SelectionConfig(sample_method="evenly_spaced"),
     ["sample_method: without effect without max_experts"]),
    (TrainConfig(target_support="none", prune=0.1, temperature_rate=1.0),
     ["temperature_rate: without effect with target_support none"]),
    (TrainConfig(target_support="none", coding="softmax"),
     ["coding: without effect with target_support none and no support_cap"]),
    (TrainConfig(target_support="none", support_cap=4, prune=0.1), []),
    (TrainConfig(lambda_t=0.5), ["lambda_t: without effect with targets surrogate"]),
    (TrainConfig(targets="pinv", lambda_t=0.5), []),
    (TrainConfig(activation="none", activation_steps=3),
     ["activation_steps: without effect with activation none"]),
    (TrainConfig(warmup_epochs=0, warmup_momentum=0.5),
     ["warmup_momentum: without effect with warmup_epochs 0"]),
])  # fmt: skip
def test_options_without_effect_are_named_and_change_no_identity(given_, named):
    assert [spelled(line) for line in given_.ignored()] == named
    read = {name: getattr(given_, name) for name in given_.model_fields_set - set(given_.unused())}
    assert type(given_)(**read).identity() == given_.identity()
    assert type(given_)(**read).ignored() == []


def test_an_option_that_the_method_reads_changes_the_identity():
    for method, facts in METHOD_FACTS.items():
        base = SeedConfig(method=method, hybrid_variant="kmeans")
        for name in set(facts.options) - {"hybrid_variant", *GREEDY}:
            spec = SeedConfig.specs()[name]
            other = next((c for c in spec.choices if c != spec.default), None)
            value = other if spec.choices else spec.kind(spec.default / 2)
            changed = base.changed(**{name: value})
            assert changed.identity() != base.identity(), (method, name)


def test_the_help_of_the_method_says_a_line_about_each():
    help_ = SeedConfig.specs()["method"].help
    assert all(f"\n\n{method}: " in help_ for method in METHODS)
    assert tuple(METHOD_FACTS) == METHODS
