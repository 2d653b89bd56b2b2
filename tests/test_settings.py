"""Settings: read from TOML and the command line, with errors that help."""

from pathlib import Path

import pytest

from training.settings import Settings, make_settings, read_settings

CONFIGS = Path("training/configs")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_of_ours_is_read(path: Path) -> None:
    settings = read_settings(path)
    assert settings.out == f"runs/{path.stem}"
    assert settings.model_config(77).n_layer == settings.model["n_layer"]


def test_seed_is_the_originals_configuration() -> None:
    config = read_settings(CONFIGS / "seed.toml").model_config(87)
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (6, 6, 384, 256)
    assert (config.activation, config.n_hidden, config.dropout) == ("relu", 4 * 384, 0.2)
    assert (config.bias, config.qkv_bias, config.tie_embeddings) == (True, False, False)


def test_key_value_pairs_come_after_the_file_and_are_read_as_toml() -> None:
    settings = read_settings(CONFIGS / "tiny.toml", ["steps=7", "learning_rate=1", "out=some where", "bias=true", "seed = 3"])
    assert (settings.steps, settings.learning_rate, settings.out, settings.seed) == (7, 1.0, "some where", 3)
    assert settings.model_config(10).bias is True


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("learnin_rate", "learning_rate"), ("nlayer", "n_layer"), ("Dropout", "dropout"), ("batchsize", "batch_size")],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest_known_one(key: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown setting '{key}': did you mean '{nearest}'?"):
        make_settings({key: 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1.5}, "steps is 1.5: it must be a whole number"),
        ({"steps": True}, "steps is True: it must be a whole number"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast': it must be a float"),
        ({"steps": 0}, "steps is 0: it must be 1 or more"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd': it must be one of muon, adamw"),
        ({"decay_share": 1.5}, "decay_share is 1.5: it must be from 0 to 1"),
        ({"batch_size": 10, "micro_batches": 3}, "batch_size 10 cannot be cut into 3"),
        ({"long_share": 0.5, "long_row_length": 8}, "long_row_length is 8: it must be at least row_length, 256"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_settings(values)


def test_a_missing_file_names_those_that_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"no configuration .*tini.toml; there are .*seed.toml, .*tiny.toml"):
        read_settings(CONFIGS / "tini.toml")


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("steps: 10")
    with pytest.raises(ValueError, match=r"mine.toml: Expected '='"):
        read_settings(tmp_path / "mine.toml")


def test_the_context_is_that_of_the_longest_rows() -> None:
    assert Settings(row_length=64).model_config(9).block_size == 64
    assert Settings(row_length=64, long_row_length=512, long_share=0.1).model_config(9).block_size == 512
    assert make_settings({"row_length": 64, "block_size": 128}).model_config(9).block_size == 128
