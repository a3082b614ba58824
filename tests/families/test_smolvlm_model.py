"""SmolVLM's requests through the engine, and what its loader refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_smolvlm as tiny
import torch
from torch import Tensor

import galago
from galago.errors import (
    CheckpointError,
    ContextLengthExceeded,
    GalagoError,
    InvalidRequest,
    UnsupportedTask,
)
from galago.media.clip import Clip
from galago.model import Model
from galago.request import Chat, Detect, DetectGaze, Done, Message, Point, Query, Request, Sampling
from galago.store import hub
from galago.store.packing import quantise_model

WIDE = tiny.picture(1, (64, 32))
"""two rows of four tiles"""
TILES = 9
FILM = Clip(tuple(tiny.picture(i, (32, 24)) for i in range(3)), (0.0, 1.0, 2.5), 3.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with tiny.open_model(tiny.write(tmp_path_factory.mktemp("tiny-smolvlm"))) as made:
        yield made


def done(model: Model, request: Request) -> Done:
    *_, last = model.submit(request)
    assert isinstance(last, Done)
    return last


def ask(*content: Any) -> Message:
    return Message("user", content)


# --- what is asked -----------------------------------------------------------------------------


def test_caption_and_query_are_conversations(model: Model) -> None:
    for said, question in (
        (model.caption(WIDE, settings=tiny.WARM)["caption"], "Can you describe this image?"),
        (model.query(WIDE, "How many?", settings=tiny.WARM)["answer"], "How many?"),
        (model.caption(FILM, "long", settings=tiny.WARM)["caption"], "Can you describe this video in detail?"),
        (model.query(FILM, "What moves?", settings=tiny.WARM)["answer"], "What moves?"),
    ):
        shown = FILM if "video" in question or "moves" in question else WIDE
        assert said and said == model.chat([ask(shown, question)], settings=tiny.WARM)["answer"]


def test_streams_are_the_text(model: Model) -> None:
    pieces = list(model.chat([ask(WIDE, "Hi")], stream=True, settings=tiny.WARM)["answer"])
    assert "".join(pieces) == model.chat([ask(WIDE, "Hi")], settings=tiny.WARM)["answer"]


@pytest.mark.parametrize("skill", [Detect("x"), Point("x"), DetectGaze((0.5, 0.5)), Query("x", reasoning=True)])
def test_what_the_model_lacks(model: Model, skill: Any) -> None:
    with pytest.raises(UnsupportedTask):
        model.submit(Request(skill, WIDE))


def test_there_are_no_variants(model: Model) -> None:
    with pytest.raises(UnsupportedTask, match="LoRA"):
        model.query(WIDE, "x", settings={"variant": "a"})


def test_detail_low_is_one_frame(model: Model) -> None:
    for detail, frames in (("high", TILES), ("low", 1)):
        usage = done(model, Request(Query("x"), WIDE, Sampling(max_tokens=1), detail=detail)).usage  # type: ignore
        assert usage.image_tokens == frames * tiny.TOKENS


def test_several_images_and_turns(model: Model) -> None:
    talk = (
        Message("system", "Be brief."),
        ask(WIDE, "What is this?"),
        Message("assistant", "Noise."),
        ask("And this: ", tiny.picture(2, (16, 16)), "?"),
    )
    usage = done(model, Request(Chat(talk), sampling=Sampling(max_tokens=1))).usage
    assert usage.image_tokens == (TILES + 17) * tiny.TOKENS


def test_control_tokens_in_a_question_are_text(model: Model) -> None:
    plain, marked = (done(model, Request(Query(text), WIDE, Sampling(max_tokens=1))).usage for text in ("x", "<image>"))
    assert marked.image_tokens == plain.image_tokens
    assert marked.prompt_tokens == plain.prompt_tokens + len("<image>") - 1


def test_an_encoded_image_stands_first_and_alone(model: Model) -> None:
    seen = model.encode_image(WIDE)
    first = model.chat([ask(seen, "What?"), Message("assistant", "x"), ask("Why?")], settings=tiny.WARM)
    assert first == model.chat([ask(WIDE, "What?"), Message("assistant", "x"), ask("Why?")], settings=tiny.WARM)
    assert model.chat([ask("What?", seen)], settings=tiny.WARM) == model.query(seen, "What?", settings=tiny.WARM)
    for talk in ([ask("a", seen, "b")], [ask(seen, WIDE, "What?")], [Message("system", "x"), ask(seen, "What?")]):
        with pytest.raises(InvalidRequest, match="encoded image"):
            model.chat(talk)


def test_an_image_of_another_model(model: Model, tmp_path: Path) -> None:
    with tiny.open_model(tiny.write(tmp_path / "other")) as other, pytest.raises(InvalidRequest, match="encoded by"):
        model.query(other.encode_image(WIDE), "x")


def test_what_does_not_fit(model: Model) -> None:
    with pytest.raises(ContextLengthExceeded, match="1024 fit"):
        model.query(WIDE, "x" * 1024)
    many = [tiny.picture(i, (16, 16)) for i in range(12)]
    with pytest.raises(ContextLengthExceeded, match="1024 fit"):
        model.chat([ask(*many, "x")])
    with pytest.raises(InvalidRequest, match="takes 8 at most"):
        model.query(Clip((WIDE,) * 9, tuple(map(float, range(9))), 9.0), "x")
    with pytest.raises(InvalidRequest, match="must have frames"):
        model.query(Clip((), (), 0.0), "x")


def test_json(model: Model) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    said = model.query(WIDE, "How many?", settings={"json_schema": schema, "max_tokens": 40})["answer"]
    assert json.loads(said)["n"] in (1, 2)


def test_the_first_generation_has_no_video(tmp_path: Path) -> None:
    preprocessor = {name: value for name, value in tiny.PREPROCESSOR.items() if name != "video_sampling"}
    folder = tiny.write(tmp_path / "v1", config={"model_type": "idefics3"}, preprocessor=preprocessor)
    with tiny.open_model(folder) as model:
        assert model.revision == "SmolVLM"
        assert model.query(WIDE, "x", settings=tiny.WARM)["answer"]
        with pytest.raises(UnsupportedTask, match="SmolVLM2"):
            model.query(FILM, "x")


# --- precisions and packing --------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_packed_model_answers_as_the_original_does(tmp_path: Path, precision: str) -> None:
    files = hub.locate(tiny.write(tmp_path / "tiny"))
    folder = quantise_model(files, precision, tmp_path / "packed").parent
    assert {f.name for f in folder.iterdir()} == {
        "model.safetensors", "tokenizer.json", "config.json", "preprocessor_config.json",
    }  # fmt: skip
    with tiny.open_model(tmp_path / "tiny", precision) as original, galago.load(folder, device="cpu") as packed:
        assert packed.precision == precision
        for shown in (WIDE, FILM, None):
            said = packed.query(shown, "What is this?", settings=tiny.WARM)
            assert said["answer"] and said == original.query(shown, "What is this?", settings=tiny.WARM)


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_answers_do_not_depend_on_who_else_asks(tmp_path: Path, precision: str) -> None:
    requests = [
        Request(Query(f"Number {i}?"), shown, Sampling(temperature=1.0, seed=i, max_tokens=20))
        for i, shown in enumerate([WIDE, FILM, None, WIDE, tiny.picture(5)])
    ]

    def texts(runs: Any) -> list[str]:
        return ["".join(getattr(event, "text", "") for event in run) for run in runs]

    with tiny.open_model(tiny.write(tmp_path / "tiny"), precision) as model:
        together = texts([model.submit(request) for request in requests])
        model.trim()
        assert together == [texts([model.submit(request)])[0] for request in requests]


# --- files that do not fit ---------------------------------------------------------------------


def test_a_tied_head(tmp_path: Path) -> None:
    weights = tiny.tensors()
    del weights["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"missing tensor lm_head\.weight"):
        tiny.load(tiny.write(tmp_path / "untied", weights=weights))
    m = tiny.load(tiny.write(tmp_path / "tied", weights=weights, config={"tie_word_embeddings": True}))
    assert torch.equal(m.weights.text.lm_head.weight, m.weights.text.wte)  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", ["missing", "unexpected", "wrong"])
def test_tensors_are_checked(tmp_path: Path, change: str) -> None:
    weights = tiny.tensors()
    name = "model.text_model.layers.1.self_attn.k_proj.weight"
    if change == "missing":
        del weights[name]
    elif change == "wrong":
        weights[name] = torch.zeros(3, 3)
    else:
        name = "model.text_model.layers.2.self_attn.k_proj.weight"
        weights[name] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        tiny.load(tiny.write(tmp_path / "tiny", weights=weights))


TEXT, VISION = tiny.CONFIG["text_config"], tiny.CONFIG["vision_config"]


@pytest.mark.parametrize(
    ("config", "preprocessor", "says"),
    [
        ({"text_config": {k: v for k, v in TEXT.items() if k != "rope_theta"}}, {}, "rope_theta"),
        ({"text_config": TEXT | {"hidden_act": "gelu"}}, {}, "silu"),
        ({"text_config": TEXT | {"num_attention_heads": 3}}, {}, "num_key_value_heads"),
        ({"vision_config": VISION | {"image_size": 48}}, {}, "image_size"),
        ({"scale_factor": 3}, {}, "scale_factor"),
        ({"image_token_id": 3}, {}, "image_token_id"),
        ({"text_config": TEXT | {"rms_norm_eps": float("nan")}}, {}, "rms_norm_eps"),
        ({"text_config": TEXT | {"rope_theta": float("inf")}}, {}, "rope_theta"),
        (
            {"text_config": TEXT | {"model_type": "mistral"}},
            {},
            r'text_config.model_type is "mistral"; allowed is "llama"',
        ),
        ({"text_config": TEXT | {"rope_parameters": {"rope_type": "linear", "factor": 2}}}, {}, "rope_type"),
        ({"text_config": TEXT | {"rope_scaling": {"factor": 4.0}}}, {}, r"rope_scaling\.factor is 4\.0; allowed is 1"),
        (
            {"text_config": TEXT | {"max_position_embeddings": 40}},
            {},
            "max_position_embeddings is 40; allowed is at least 70",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, {}, "quantization_config is .*bitsandbytes"),
        ({}, {"size": {"longest_edge": 2048}}, r"size\.longest_edge is 2048; allowed is fewer pixels"),
        ({}, {"do_normalize": False}, "do_normalize is false; allowed is true"),
        ({}, {"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({}, {"resample": 3}, "resample is 3; allowed is 1"),
        ({"vision_config": VISION | {"layer_norm_eps": "1e-6"}}, {}, "layer_norm_eps"),
        ({"text_config": None}, {}, "text_config is missing"),
        ({}, {"max_image_size": {}}, "max_image_size.longest_edge"),
        ({}, {"image_mean": [0.4, 0.5, 0.5]}, "image_mean"),
    ],
)
def test_configs_are_checked(tmp_path: Path, config: dict[str, Any], preprocessor: dict[str, Any], says: str) -> None:
    folder = tiny.write(tmp_path / "tiny", config=config, preprocessor=tiny.PREPROCESSOR | preprocessor)
    with pytest.raises(CheckpointError, match=says):
        tiny.load(folder)


def test_rope_theta_of_newer_files(tmp_path: Path) -> None:
    text = {k: v for k, v in TEXT.items() if k != "rope_theta"} | {"rope_parameters": {"rope_theta": 100000}}
    folder = tiny.write(tmp_path / "tiny", config={"text_config": text})
    assert tiny.load(folder).config.text.theta == 100000.0


def as_transformers_5_saves(folder: Path, weights: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """What newer versions say of the whole in other places: rotation in a part of its own, `dtype`, and how images and
    videos are prepared in one file."""
    text = {k: v for k, v in TEXT.items() if k != "rope_theta"} | {
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "head_dim": 16, "model_type": "llama",
        "dtype": "float32", "use_cache": False, "attention_dropout": 0.0, "pad_token_id": None, "pretraining_tp": 1,
    }  # fmt: skip
    more = {"dtype": "float32", "transformers_version": "5.24.0", "architectures": ["SmolVLMForConditionalGeneration"]}
    tiny.write(folder, weights=weights, config={"text_config": text, **more, **config})
    images = tiny.PREPROCESSOR | {
        "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 1, "rescale_factor": 1 / 255,
        "image_processor_type": "SmolVLMImageProcessor", "data_format": "channels_first", "return_row_col_info": False,
    }  # fmt: skip
    videos = {
        **images,
        "video_processor_type": "SmolVLMVideoProcessor",
        "fps": 1,
        "num_frames": 8,
        "do_sample_frames": False,
    }
    both = {"image_processor": images, "video_processor": videos, "image_seq_len": 4}
    (folder / "processor_config.json").write_text(json.dumps(both | {"processor_class": "SmolVLMProcessor"}))
    (folder / "preprocessor_config.json").unlink()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 5.0, "eos_token_id": 3})
    )
    return folder


def test_a_folder_as_transformers_5_saves_it_answers_as_one_of_before(model: Model, tmp_path: Path) -> None:
    folder = as_transformers_5_saves(tmp_path / "new")
    with galago.load(folder, device="cpu") as new:
        assert new.video_sampling == model.video_sampling
        for shown in (WIDE, FILM, None):
            said = new.query(shown, "What is this?", settings=tiny.WARM)
            assert said["answer"] and said == model.query(shown, "What is this?", settings=tiny.WARM)
    packed = quantise_model(hub.locate(folder), "int8", tmp_path / "packed").parent
    with galago.load(packed, device="cpu") as small:
        assert small.video_sampling == model.video_sampling
        assert small.query(FILM, "What moves?", settings=tiny.WARM)["answer"]


def test_names_that_trainers_and_bare_models_give_tensors(model: Model, tmp_path: Path) -> None:
    plain = tiny.tensors()
    asked = {"question": "What is this?", "settings": tiny.WARM}
    wanted = model.query(WIDE, **asked)
    for renamed in (
        {f"module.{name}": t for name, t in plain.items()},
        {f"_orig_mod.{name}": t for name, t in plain.items()},
        {name.replace("layers.0.", "layers.0._orig_mod."): t for name, t in plain.items()},
        {name.replace("layers.1.", "layers.1._fsdp_wrapped_module."): t for name, t in plain.items()},
        {name.removeprefix("model."): t for name, t in plain.items()},
    ):
        assert renamed != plain
        with galago.load(tiny.write(tmp_path / "renamed", weights=renamed), device="cpu") as other:
            assert other.query(WIDE, **asked) == wanted


@pytest.mark.parametrize("left_out", ["lm_head.weight", "model.text_model.embed_tokens.weight"])
@pytest.mark.parametrize("flag", ["tie_word_embeddings", "text_config"])
def test_of_two_tied_tensors_either_may_be_left_out(tmp_path: Path, left_out: str, flag: str) -> None:
    weights = tiny.tensors()
    del weights[left_out]
    tied: dict[str, Any] = {"tie_word_embeddings": True}
    folder = tiny.write(tmp_path / "tied", weights=weights, config=tied if flag in tied else {flag: TEXT | tied})
    m = tiny.load(folder)
    assert torch.equal(m.weights.text.lm_head.weight, m.weights.text.wte)  # type: ignore[attr-defined]


def test_without_a_preprocessor(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "tiny")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"/preprocessor_config\.json is missing, or empty"):
        tiny.load(folder)


def test_loaded_by_its_files(tmp_path: Path) -> None:
    with galago.load(tiny.write(tmp_path / "tiny"), precision="bfloat16", device="cpu") as model:
        assert (model.revision, model.precision) == ("SmolVLM2", "bfloat16")
        assert model.caption(FILM, settings=tiny.WARM)["caption"]
    with pytest.raises(GalagoError, match="SmolVLM2"):
        galago.load(tmp_path / "tiny", revision="2025-06-21")
