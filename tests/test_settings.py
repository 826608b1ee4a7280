import pytest
from ruamel.yaml import YAML

from regraft.errors import SettingsError
from regraft.paths import REPOSITORY
from regraft.settings import Settings, load_settings


def load(tmp_path, text):
    """Load settings that hold `text`, and every section that it does not mention as an empty one."""
    path = tmp_path / "params.yaml"
    if not text.startswith("-"):
        absent = [name for name in Settings.model_fields if f"{name}:" not in text and name not in ("name", "seed")]
        text += "\n" + "".join(f"{name}: {{}}\n" for name in absent) + ("" if "seed:" in text else "seed: 1\n")
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def problems(tmp_path, text):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    return str(caught.value)


def test_the_shipped_settings_are_valid_and_say_every_setting_with_its_default():
    values = YAML(typ="safe", pure=True).load((REPOSITORY / "params.yaml").read_text("utf-8"))
    assert values == Settings(name="mnist5k").model_dump()
    assert load_settings(REPOSITORY / "params.yaml").name == "mnist5k"


def test_every_setting_in_the_shipped_file_has_a_comment():
    lines = (REPOSITORY / "params.yaml").read_text("utf-8").splitlines()
    settings = [line for line in lines if line.startswith("  ") or line.startswith(("name", "seed"))]
    assert len(settings) > 20
    assert [line for line in settings if "#" not in line and not line.strip().startswith("batch_size: 32")] == []


def test_yaml_that_dvc_cannot_read_is_refused_with_what_to_write(tmp_path):
    message = problems(tmp_path, "name: a\ndownload: {source: [folder:A, folder:B]}\n")
    assert "line 2" in message
    assert "['folder:A', 'folder:B']" in message
    quoted = load(tmp_path, "name: a\ndownload: {source: ['folder:A', 'folder:B']}\n")
    assert quoted.download.sources == ["folder:A", "folder:B"]


def test_all_problems_are_reported_together(tmp_path):
    message = problems(tmp_path, "name: a\nseed: -1\nfinetune: {epochs: 0, batch_size: '32'}\npromote: {metric: acc}\n")
    assert "4 invalid setting(s)" in message
    for where in ("seed:", "finetune.epochs:", "finetune.batch_size:", "promote.metric:"):
        assert where in message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("name: a\nfinetune: {lerning_rate: 0.1}", "finetune.lerning_rate: there is no such setting; did you mean"),
        ("name: a\nfintune: {}", "did you mean `finetune`?"),
        ("name: a\nfinetune: {colour: 1}", "known here: strategy, epochs,"),
        ("seed: 1", "name: is required and missing"),
        ("name: my pets", "must be up to 64 letters, digits, `_`, `-` and `.`, beginning with a letter or digit"),
        (
            "name: a\nembed: {image_size_px: 10}",
            "embed.image_size_px: Input should be 'auto', or input should be greater",
        ),
        ("name: a\nevaluate: 3", "evaluate: must hold settings as `key: value` lines (got 3)"),
        ("- a", "must hold settings as `key: value` lines, got list"),
        ("name: [", "is not valid YAML"),
    ],
)
def test_a_problem_says_where_and_what_to_do(tmp_path, text, hint):
    assert hint in problems(tmp_path, text)


def test_types_are_strict_but_a_whole_number_may_stand_for_a_float(tmp_path):
    assert load(tmp_path, "name: a\nfinetune: {learning_rate: 1}").finetune.learning_rate == 1.0
    assert load(tmp_path, "name: a\nfinetune: {learning_rate: 1e-3}").finetune.learning_rate == 0.001
    assert "finetune.augment" in problems(tmp_path, "name: a\nfinetune: {augment: 'yes'}")
    assert "finetune.epochs" in problems(tmp_path, "name: a\nfinetune: {epochs: 2.0}")


def test_a_missing_file_says_how_to_make_a_project(tmp_path):
    with pytest.raises(SettingsError, match="regraft init"):
        load_settings(tmp_path / "params.yaml")


def test_settings_may_be_left_out_but_no_section(tmp_path):
    assert load(tmp_path, "name: a").finetune.epochs == Settings(name="a").finetune.epochs
    path = tmp_path / "params.yaml"
    path.write_text("name: a\nseed: 1\n")
    with pytest.raises(SettingsError, match="finetune: is required and missing"):
        load_settings(path)


def test_a_target_may_be_one_column_or_several_but_not_none(tmp_path):
    assert load(tmp_path, "name: a\npreprocess: {target_column: x}").preprocess.target_column == "x"
    assert load(tmp_path, "name: a\npreprocess: {target_column: [x, y]}").preprocess.target_column == ["x", "y"]
    assert "preprocess.target_column:" in problems(tmp_path, "name: a\npreprocess: {target_column: []}")
    assert problems(tmp_path, "name: a\npreprocess: {target_column: 3}").count("\n") == 1


def test_only_an_error_in_the_unit_of_the_target_may_have_a_minimum_or_tolerance_above_one(tmp_path):
    assert load(tmp_path, "name: a\npromote: {metric: rmse, minimum: 12, tolerance: 3}").promote.minimum == 12.0
    for metric in ("auto", "accuracy", "r2"):
        for setting in ("minimum: 1.5", "tolerance: 1"):
            message = problems(tmp_path, f"name: a\npromote: {{metric: {metric}, {setting}}}")
            assert f"for the metric {metric}" in message


@pytest.mark.parametrize(
    ("strategy", "option", "usual"),
    [
        ("probe", "mixup: 0.2", "set it to 0.0 (got 0.2)"),
        ("probe", "soup: true", "set it to false (got True)"),
        ("probe", "budget_s: 60", "set it to null (got 60.0)"),
        ("lora", "layer_decay: 0.9", "set it to 1.0 (got 0.9)"),
        ("contrastive", "label_smoothing: 0.1", "set it to 0.0 (got 0.1)"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, strategy, option, usual):
    said = problems(tmp_path, f"name: a\nfinetune: {{strategy: {strategy}, {option}}}")
    assert f"{option.partition(':')[0]} has no meaning with strategy {strategy}: {usual}" in said
    assert "(got {" not in said  # the whole section
    assert load(tmp_path, f"name: a\nfinetune: {{strategy: lp_ft, {option}}}").finetune.strategy == "lp_ft"


def test_a_setting_of_two_types_is_one_problem_without_a_word_of_python(tmp_path):
    said = problems(tmp_path, "name: a\nfinetune: {learning_rate: fast}\nembed: {audio_seconds: -1}")
    assert "has 2 invalid setting(s)" in said
    assert "finetune.learning_rate: " in said
    assert "function" not in said
