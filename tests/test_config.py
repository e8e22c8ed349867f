"""Configuration records: bounds, TOML and the command line all come from the fields."""

import dataclasses

import pytest

from globe_stream.cli.checkpoint import plan
from globe_stream.cli.options import record_from
from globe_stream.cli.runs import seed, train
from globe_stream.commands.wording import flag
from globe_stream.config import (
    RuntimeConfig,
    SeedConfig,
    SelectionConfig,
    TrainConfig,
    differences,
    limits_of,
    load_toml,
    to_toml,
)
from globe_stream.errors import InputError

RECORDS = (SelectionConfig, SeedConfig, TrainConfig, RuntimeConfig)


@pytest.mark.parametrize("record", RECORDS)
def test_defaults_pass_their_own_checks_and_survive_toml(record):
    default = record()
    table = load_toml(to_toml({"t": dataclasses.asdict(default)}), "here")["t"]
    assert record.from_mapping(table, "here") == default


@pytest.mark.parametrize("record", RECORDS)
def test_every_number_is_checked_at_its_bounds(record):
    for item in dataclasses.fields(record):
        limits = limits_of(item)
        for bound, outside in ((limits.low, -1), (limits.high, 1)):
            if bound is None:
                continue
            wrong = type(bound)(bound + outside)
            with pytest.raises(InputError, match=f"{item.name} .* out of range"):
                dataclasses.replace(record(), **{item.name: wrong})


@pytest.mark.parametrize("record", RECORDS)
def test_every_choice_is_accepted_and_others_refused(record):
    for item in dataclasses.fields(record):
        for choice in limits_of(item).choices:
            assert getattr(record(**{item.name: choice}), item.name) == choice
        if limits_of(item).choices:
            with pytest.raises(InputError, match=r"is not known: use one of"):
                record(**{item.name: "something else"})


def test_unknown_keys_and_wrong_types_are_named():
    with pytest.raises(InputError, match=r"recipe \[seed\]: unknown key 'rnak'; known: method, "):
        SeedConfig.from_mapping({"rnak": 3}, "recipe [seed]")
    for values in ({"rank": "3"}, {"rank": 3.0}, {"rank": True}, {"method": 3}):
        with pytest.raises(InputError, match=rf"recipe: {next(iter(values))} = .*is needed"):
            SeedConfig.from_mapping(values, "recipe")
    assert SeedConfig.from_mapping({"rank_ratio": 1}, "recipe").rank_ratio == 1.0


def test_toml_mistakes_name_their_place():
    with pytest.raises(InputError, match=r"my\.toml: not valid TOML"):
        load_toml("a = ", "my.toml")


def test_identity_leaves_out_how_a_run_is_carried_out():
    assert set(RuntimeConfig().identity()) == {"device"}
    assert "epochs" not in TrainConfig().identity()
    names = {item.name for item in dataclasses.fields(SeedConfig)}
    assert set(SeedConfig().identity()) == names


def test_differences_are_spelled_out():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": "x", "d": None}) == [
        "b: was 2, now 'x'", "c: was 3, now None"]  # fmt: skip


@pytest.mark.parametrize(("scope", "layers"), [("global", None), ("layer", 1), ("layers:6", 6)])
def test_bank_scopes(scope, layers):
    assert SeedConfig(bank_scope=scope).scope_layers() == layers


@pytest.mark.parametrize("scope", ["layers", "layers:", "layers:0", "layers:-1", "layers:x", "all"])
def test_unknown_bank_scopes(scope):
    with pytest.raises(InputError, match="bank_scope"):
        SeedConfig(bank_scope=scope)


@pytest.mark.parametrize(("command", "records"), [
    (seed, (SelectionConfig, SeedConfig, RuntimeConfig)), (train, (TrainConfig, RuntimeConfig)),
    (plan, (SelectionConfig, SeedConfig)),
])  # fmt: skip
def test_the_command_line_has_every_field_with_its_default(command, records):
    options = {option.name: option for option in command.params}
    for record in records:
        values = {name: option.default for name, option in options.items()}
        assert record_from(record, values) == record()
        for item in dataclasses.fields(record):
            if item.name not in ("checkpoint_every", "wandb_project") or command is not plan:
                assert flag(item.name) in options[item.name].opts
                assert limits_of(item).help.split()[0] in options[item.name].help
