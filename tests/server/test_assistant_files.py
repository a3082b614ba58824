"""The configuration files of the AI Manual Assistant as `--config`."""

import json
from pathlib import Path
from typing import Any

import pytest

from galago.errors import InvalidRequest
from galago.server.setting_sources import EffectiveSettings, read_settings
from galago.server.settings import ServerSettings

APP = {
    "server": {"host": "0.0.0.0", "port": 8000},
    "frontend": {"video_width": 640, "video_height": 480, "api_base_url": "http://localhost:8000"},
    "model_server": {"host": "localhost", "port": 8081},
    "active_model": "moondream2_optimized",
}
MODEL: dict[str, Any] = {
    "model_name": "Moondream2",
    "model_id": "moondream2",
    "model_path": "vikhyatk/moondream2",
    "device": "mps",
    "max_tokens": 100,
    "timeout": 60,
    "version": "1.0.0",
    "description": "quick",
    "server": {
        "host": "localhost",
        "port": 8082,
        "framework": "flask",
        "cors_enabled": True,
        "log_level": "INFO",
        "health_endpoint": "/health",
    },
    "image_processing": {
        "size": [384, 384],
        "max_size": 512,
        "format": "JPEG",
        "quality": 90,
        "jpeg_quality": 90,
        "optimize": True,
        "preserve_aspect_ratio": True,
        "resize_method": "LANCZOS",
    },
    "inference": {"max_tokens": 100, "temperature": 0.7, "do_sample": False, "torch_dtype": "float16"},
    "generation_config": {
        "max_new_tokens": 100,
        "do_sample": False,
        "temperature": 0.7,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
    },
    "memory": {"required_gb": 4, "max_memory_gb": 8.5, "cleanup_aggressive": True, "pre_check_memory": None},
    "mlx_config": {"quantization_bits": 4, "group_size": 64},
    "limits": {"max_sequence_length": 2048, "max_image_size": 1024, "timeout_seconds": 60},
    "performance": {"anything": {"at": "all"}},
    "ui": {"default_instruction": "Describe", "capture_intervals": [1, 2], "default_interval": 2},
}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def reading(table: Any) -> EffectiveSettings:
        file = tmp_path / "file.json"
        file.write_text(json.dumps(table))
        return read_settings(config=file, environment={})

    return reading


def test_every_key_of_the_application(read: Any) -> None:
    found = read(APP)
    assert found.settings == ServerSettings(model=("moondream2",), host="localhost", port=8081, profile="optimized")
    assert found.origins["port"] == "file.json: model_server.port"
    assert found.origins["model"] == found.origins["profile"] == "file.json: active_model"
    assert found.warnings == ()


def test_every_key_of_a_model(read: Any) -> None:
    found = read(MODEL)
    assert found.settings == ServerSettings(
        model=("vikhyatk/moondream2",),
        host="localhost",
        port=8082,
        device="mps",
        timeout=60,
        log_level="info",
        max_memory_gb=8.5,
        precision="int4",
    )
    assert found.origins["max_memory_gb"] == "file.json: memory.max_memory_gb"
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, ServerSettings()),
        ({"active_model": "smolvlm"}, ServerSettings(model=("smolvlm",))),
        ({"model_name": "Scenes"}, ServerSettings(model=("Scenes",))),
        ({"model_path": "mlx/unknown", "model_id": "moondream2"}, ServerSettings(model=("moondream2",))),
        ({"model_path": "mlx/unknown", "model_id": "unknown"}, ServerSettings(model=("mlx/unknown",))),
        ({"model_id": "moondream2_optimized"}, ServerSettings(model=("moondream2",), profile="optimized")),
        ({"device": "auto", "timeout": None, "server": None}, ServerSettings()),
        ({"limits": {"timeout_seconds": 5}}, ServerSettings(timeout=5)),
        ({"inference": {"torch_dtype": "torch.bfloat16"}}, ServerSettings(precision="bfloat16")),
        ({"inference": {"torch_dtype": "auto"}}, ServerSettings()),
        ({"mlx_config": {"quantization_bits": 8}}, ServerSettings(precision="int8")),
    ],
)
def test_what_keys_mean(read: Any, table: dict[str, Any], expected: ServerSettings) -> None:
    found = read(table)
    assert (found.settings, found.warnings) == (expected, ())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"servr": {"port": 1}}, "file.json: servr is not known and not used; did you mean server?"),
        ({"server": {"prot": 1}}, "file.json: server.prot is not known and not used; did you mean port?"),
        ({"active_model": "scenes", "device": "cpu"}, "file.json: device is not known"),
        ({"timeout": 5, "limits": {"timeout_seconds": 6}}, "limits.timeout_seconds is not used, since"),
    ],
)
def test_what_is_not_used_is_told(read: Any, table: dict[str, Any], said: str) -> None:
    [warning] = read(table).warnings
    assert said in warning


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"server": {"port": "8080"}}, "file.json: server.port must be a whole number in 0..65535, not '8080'"),
        ({"server": 8080}, "file.json: server must be an object"),
        ({"model_id": 5}, "file.json: model_id must be a name or path, not 5"),
        ({"device": "npu"}, "file.json: device must be auto, cpu"),
        ({"limits": {"timeout_seconds": 0}}, "file.json: limits.timeout_seconds must be"),
        ({"memory": {"max_memory_gb": -1}}, "file.json: memory.max_memory_gb must be"),
        ({"mlx_config": {"quantization_bits": 3}}, "file.json: mlx_config.quantization_bits must be 4 or 8, not 3"),
        ({"inference": {"torch_dtype": "float8"}}, "file.json: inference.torch_dtype must be float32, bfloat16"),
        ({"model_server": {"port": 70000}}, "file.json: model_server.port must be"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(read: Any, table: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(table)
    assert str(raised.value).startswith(said)
