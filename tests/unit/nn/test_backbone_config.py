"""BackboneConfig: what it refuses, and how it says so."""

from typing import Any

import pytest

from magneto.nn import BackboneConfig, Decoder, Encoder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"placement": "magnet0"}, "Did you mean 'magneto'"),
        ({"placement": "preln"}, "Did you mean 'pre_ln'"),
        ({"placement": "zzz"}, "Choose from magneto, pre_ln, post_ln, deepnorm, normformer"),
        (
            {"activation": "gelo"},
            "activation=gelo: must be one of gelu, gelu_tanh, relu, swiglu. Did you mean 'gelu'",
        ),
        ({"d_model": 250, "num_heads": 4}, "Set num_heads=5, or d_model=252"),
        ({"num_layers": 0}, "num_layers=0: input should be greater than or equal to 1"),
        ({"dropout": 1.0}, "dropout=1.0: input should be less than 1"),
        ({"decoder_layers": 3}, "Set the depth as num_layers"),
        ({"position": "rotary", "d_model": 12, "num_heads": 4}, "so that this is even"),
        ({"position": "sinusoidal", "d_model": 15, "num_heads": 5}, "even d_model"),
        ({"position": "convolutional", "conv_position_kernel": 30}, "must be odd"),
        ({"relative_buckets": 30}, "relative_buckets=30: input should be a multiple of 4"),
        ({"position": "relative", "relative_max_distance": 16}, "for example 128"),
        ({"d_model": "256"}, "d_model=256: input should be a valid integer"),
        ({"bias": 1}, "bias=1: input should be a valid boolean"),
        ({"multiway": "full", "architecture": "decoder"}, "multiway=full is a property of an encoder. Set"),
        (
            {"multiway": "full", "architecture": "encoder_decoder"},
            "Set architecture=encoder, not encoder_dec",
        ),
        ({"fusion_layers": 2}, "fusion_layers=2 has no effect with multiway=none"),
        ({"fusion_layers": 7, "multiway": "feed_forward"}, "between 0 and num_layers=6"),
        ({"position": "relative_2d"}, "needs the patches per side"),
        (
            {"position": "relative_2d", "grid": 7, "architecture": "decoder"},
            "have no past. Set architecture=enc",
        ),
    ],
)
def test_bad_values_raise_with_the_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        BackboneConfig(**values)
    assert message in str(error.value)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match="backbone.num_layer: there is no such key. Did you mean 'backbone.num_layers'"
    ):
        BackboneConfig.from_dict({"num_layer": 3})


def test_round_trip_through_plain_values() -> None:
    config = BackboneConfig(placement="deepnorm", dropout=0, inner_ffn_norm=False, decoder_layers=None)
    assert BackboneConfig.from_dict(config.to_dict()) == config
    assert all(isinstance(v, str | int | float | bool | None) for v in config.to_dict().values())


def test_missing_side_raises() -> None:
    """A side that the architecture does not have."""
    with pytest.raises(ValueError, match="architecture=encoder has no decoder. Set architecture=decoder"):
        Decoder(BackboneConfig())
    with pytest.raises(ValueError, match="architecture=decoder has no encoder"):
        Encoder(BackboneConfig(architecture="decoder"))


def test_defaults_that_follow_other_fields() -> None:
    assert BackboneConfig(d_model=64).ffn_width == 256
    assert BackboneConfig(d_model=64, ffn_dim=100).ffn_width == 100
    depth = BackboneConfig(architecture="encoder_decoder", num_layers=5).depth("decoder")
    assert (depth.encoder_layers, depth.decoder_layers) == (5, 5)
