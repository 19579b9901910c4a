import pytest

from unlearn_mlx.config import PRESETS, Settings, make_settings
from unlearn_mlx.errors import UserError


def test_every_preset_is_valid_and_larger_than_the_one_before():
    quick, standard, thorough = (make_settings(name) for name in ("quick", "standard", "thorough"))
    for name in (
        "questions",
        "answers",
        "neighbours",
        "general",
        "instructions",
        "epochs",
        "validations",
        "samples",
    ):
        values = [getattr(settings, name) for settings in (quick, standard, thorough)]
        assert values == sorted(values), name
    assert make_settings() == standard
    assert list(PRESETS) == ["quick", "standard", "thorough"]


def test_an_option_overrides_the_preset_and_none_does_not():
    settings = make_settings("quick", questions=77, rank=None)
    assert settings.questions == 77
    assert settings.rank == make_settings("quick").rank
    assert settings.answers == make_settings("quick").answers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("questions", 0),
        ("questions", -5),
        ("questions", 10**12),
        ("answers", 0),
        ("rounds", 0),
        ("epochs", 0.0),
        ("epochs", -1.0),
        ("epochs", float("nan")),
        ("epochs", float("inf")),
        ("learning_rate", float("nan")),
        ("temperature", float("nan")),
        ("kl_weight", float("inf")),
        ("scale", 0.0),
        ("rank", 100_000),
        ("batch_size", 0),
        ("answer_tokens", 10**9),
        ("samples", -1),
        ("seed", -1),
        ("questions", "many"),
        ("no_such_setting", 1),
    ],
)
def test_a_value_out_of_range_is_named_in_one_line(name, value):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} ") as caught:
        make_settings(**{name: value})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="quick, standard, thorough"):
        make_settings("fast")


def test_every_setting_says_what_it_is():
    assert all(field.description for field in Settings.model_fields.values())
