"""Models that the transformers library runs: tiny random checkpoints in its layout, asked through the Python face."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("transformers", reason="needs transformers (pip install 'galago[transformers]')")

import tiny_transformers as tiny
import torch
from safetensors.torch import load_file, save_file

import galago
from galago.backends.memory_estimate import memory_needed, model_entry
from galago.request import Caption, Chat, Query
from galago.store import packed_cache

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of PaliGemma's processor
RED, BLUE = (Image.new("RGB", (60, 40), color) for color in ("red", "blue"))
SKILLS = {
    "llava": {Caption, Query, Chat},
    "llava-plain": {Caption, Query, Chat},
    "qwen": {Caption, Query, Chat},
    "blip": {Caption},
    "git": {Caption},
    "blip-vqa": {Query, Chat},
    "vit-gpt2": {Caption},
    "paligemma": {Caption, Query, Chat},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("checkpoints")
    made = {name: make(base / name) for name, make in tiny.KINDS.items()}
    return made | {"llava-plain": tiny.llava(base / "llava-plain", chat=None)}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> Iterator[dict[str, galago.Model]]:
    made = {name: galago.load(folder, precision="float32") for name, folder in folders.items()}
    yield made
    for model in made.values():
        model.close()


def said(model: galago.Model, skill: Any, image: Any = RED, **sampling: Any) -> str:
    """The text of an answer of at most twelve tokens."""
    sampling = {"max_tokens": 12, **sampling}
    run = model.submit(galago.Request(skill, image, sampling=galago.Sampling(**sampling)))
    return "".join(event.text for event in run if isinstance(event, galago.TextDelta))


def usage(model: galago.Model, skill: Any, image: Any = RED) -> galago.Usage:
    """What an answer of two tokens took."""
    *_, done = model.submit(galago.Request(skill, image, sampling=galago.Sampling(max_tokens=2)))
    assert isinstance(done, galago.Done)
    return done.usage


def first_skill(name: str) -> Any:
    return Caption() if Caption in SKILLS[name] else Query("what is this?")


@pytest.mark.parametrize("name", SKILLS)
def test_skills_are_those_of_the_kind_and_others_are_refused(models: dict[str, galago.Model], name: str) -> None:
    model = models[name]
    assert model.backend.facts.skills == SKILLS[name]
    lacks = {Caption: Caption(), Query: Query("what?"), Chat: Chat((galago.Message("user", "what?"),))}
    for skill in (lacks.keys() - SKILLS[name]) | {galago.Detect}:
        with pytest.raises(galago.UnsupportedTask, match="this model does not"):
            said(model, lacks.get(skill, galago.Detect("cat")))


@pytest.mark.parametrize("name", SKILLS)
def test_an_answer_is_that_of_the_library_itself(
    models: dict[str, galago.Model], folders: dict[str, Path], name: str
) -> None:
    """Greedy, against its own generate() over the same prompt."""
    held: Any = models[name].backend
    model, processor = held._model.model, held._model.processor
    question = "what is in the image?"
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    texts: dict[str, Any] = {
        "llava": f"USER: <image>\n{question}\nASSISTANT:",
        "llava-plain": f"USER: <image>\n{question} ASSISTANT:",
        "qwen": f"<|im_start|>user\n{shown}{question}<|im_end|>\n<|im_start|>assistant\n",
        "blip-vqa": question,
        "paligemma": f"answer en {question}",
    }
    text = {"text": texts[name]} if name in texts else {}
    inputs = processor(images=RED, return_tensors="pt", **text)
    banned = [[token] for token in held._model.banned]
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=12, do_sample=False, bad_words_ids=banned or None)
    start = 0 if name in ("blip", "git", "blip-vqa", "vit-gpt2") else inputs["input_ids"].shape[1]
    expected = processor.tokenizer.decode(made[0][start:], skip_special_tokens=True).removeprefix("##")
    asked = Query(question) if Query in SKILLS[name] else Caption()
    assert expected and said(models[name], asked).strip() == expected.strip()


@pytest.mark.parametrize("name", SKILLS)
def test_what_is_seen_matters(models: dict[str, galago.Model], name: str) -> None:
    def probability(image: Image.Image) -> float:
        request = galago.Request(first_skill(name), image, sampling=galago.Sampling(max_tokens=1), top_logprobs=0)
        [token] = [t for e in models[name].submit(request) if isinstance(e, galago.TextDelta) for t in e.tokens]
        return token.logprob

    assert probability(RED) == probability(RED.copy()) != probability(BLUE)


def test_several_images_in_a_conversation(models: dict[str, galago.Model]) -> None:
    for name in ("llava", "qwen"):
        turns = [
            {"role": "system", "content": "this is a cat"},
            {"role": "user", "content": [RED, BLUE, "how many are there?"]},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "what is in this?"},
        ]
        two, one = usage(models[name], models[name].conversation(turns), None), usage(models[name], Query("what?"))
        assert two.completion_tokens == one.completion_tokens == 2
        assert two.image_tokens == 2 * one.image_tokens > 0


def test_a_conversation_of_one_question_is_that_question(models: dict[str, galago.Model]) -> None:
    """Models without a chat template take no other, and clients have no other form to ask in."""
    for name in ("llava-plain", "blip-vqa"):
        model, user = models[name], {"role": "user", "content": [RED, "what is in this?"]}
        assert said(model, model.conversation([user]), None) == said(model, Query("what is in this?"))
        with pytest.raises(galago.UnsupportedTask, match="one question"):
            model.chat([{"role": "system", "content": "yes"}, user])
        with pytest.raises(galago.TooManyImages):
            model.chat([{"role": "user", "content": [RED, BLUE, "what?"]}])


def test_a_photograph_fits_into_the_context(folders: dict[str, Path], tmp_path: Path) -> None:
    """Of a model that sees images in their own size, as its checkpoint allows."""
    shutil.copytree(folders["qwen"], tmp_path / "large")
    images, config = (tmp_path / "large" / name for name in ("preprocessor_config.json", "config.json"))
    images.write_text(json.dumps(json.loads(images.read_text()) | {"max_pixels": 12845056}))
    known = json.loads(config.read_text())
    known["text_config"]["max_position_embeddings"] = 4096
    config.write_text(json.dumps(known))
    with galago.load(tmp_path / "large") as model:
        assert 1000 < usage(model, Query("what?"), RED.resize((4000, 3000))).image_tokens <= 1280


def test_packed_weights_are_kept_and_answer_the_same(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:

    def told(worth_keeping: int) -> list[float]:
        monkeypatch.setattr("galago.store.packing.WORTH_KEEPING", worth_keeping)
        with galago.load(folders["qwen"], precision="int8") as model:
            request = galago.Request(Caption(), RED, sampling=galago.Sampling(max_tokens=4), top_logprobs=0)
            return [t.logprob for e in model.submit(request) if isinstance(e, galago.TextDelta) for t in e.tokens]

    in_memory = told(1 << 30)
    assert not packed_cache.packed_copies() and told(0) == in_memory
    [kept] = packed_cache.packed_copies()
    made = kept.file.stat().st_mtime_ns
    assert (kept.model, kept.precision, kept.source) == ("qwen", "int8", folders["qwen"].resolve())
    assert told(0) == in_memory and kept.file.stat().st_mtime_ns == made
    with kept.file.open("r+b") as damaged:
        damaged.seek(-1, 2)
        damaged.write(b"\xff")
    assert told(0) == in_memory and kept.file.stat().st_mtime_ns != made


def test_what_a_chat_template_refuses_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["llava"], tmp_path / "strict")
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    (tmp_path / "strict" / "chat_template.jinja").write_text(refusal + tiny.CHAT)
    with galago.load(tmp_path / "strict") as model:
        user = {"role": "user", "content": [RED, "what?"]}
        assert said(model, model.conversation([user]), None)
        with pytest.raises(galago.InvalidRequest, match="takes no such conversation: no system here"):
            model.chat([{"role": "system", "content": "be kind"}, user])


@pytest.mark.parametrize("template", ["{{ messages[0]['content'] + eos_token }}", "{{ messages|length }}"])
def test_a_chat_template_for_texts_alone_is_not_used(folders: dict[str, Path], tmp_path: Path, template: str) -> None:
    """As fine-tunes have it that kept a language model's."""
    shutil.copytree(folders["llava"], tmp_path / "made")
    (tmp_path / "made" / "chat_template.jinja").write_text(template)
    with galago.load(tmp_path / "made") as model:
        assert said(model, Query("what is in this?")) and "its chat template shows no images" in model.fallbacks[0]
        with pytest.raises(galago.UnsupportedTask, match="one question"):
            model.chat([{"role": "system", "content": "x"}, {"role": "user", "content": [RED, "what?"]}])


def test_pieces_are_the_text_whatever_the_tokenizer(models: dict[str, galago.Model]) -> None:
    """Blanks that a tokenizer writes before words are lost by who decodes each line or piece by itself."""
    for name in SKILLS:
        model: Any = models[name].backend
        tokenizer, m = model._model.processor.tokenizer, model._model
        text = "what is in the image\nred cat\nand dog" if "llava" in name else "what is in the image of a red cat?"
        ids = tokenizer.encode(text, add_special_tokens=False)
        stream = galago.engine.text_stream.TextStream(m.decode)  # type: ignore[attr-defined]
        pieces = [stream.push(token) for token in ids] + [stream.finish()]
        assert "".join(pieces).strip() == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_a_seed_repeats_an_answer(models: dict[str, galago.Model]) -> None:
    for name in SKILLS:
        model, skill = models[name], first_skill(name)
        drawn = [said(model, skill, temperature=1.5, seed=seed) for seed in (1, 1, 2, 3)]
        assert drawn[0] == drawn[1] and len(set(drawn)) > 1


def test_stops_limits_and_reasons(models: dict[str, galago.Model]) -> None:
    model = models["git"]
    whole = said(model, Caption())
    word = whole.split()[1]
    request = galago.Request(Caption(), RED, sampling=galago.Sampling(max_tokens=12, stop=(word,)))
    *pieces, done = model.submit(request)
    assert isinstance(done, galago.Done) and done.finish_reason == "stop"
    assert "".join(p.text for p in pieces if isinstance(p, galago.TextDelta)) == whole[: whole.index(word)]
    [*_, done] = model.submit(galago.Request(Caption(), RED, sampling=galago.Sampling(max_tokens=3)))
    assert isinstance(done, galago.Done)
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 3)


def test_an_answer_ends_at_any_of_its_end_tokens(models: dict[str, galago.Model]) -> None:
    """generation_config.json names two; the tokenizer names the first."""
    held: Any = models["qwen"].backend
    assert held._model.ends == {0, 2}
    for end in (0, 2):
        request = galago.Request(Caption(), RED, sampling=galago.Sampling(max_tokens=5, logit_bias={end: 100}))
        [done] = models["qwen"].submit(request)
        assert isinstance(done, galago.Done) and done.finish_reason == "stop" and done.usage.completion_tokens == 0


def test_text_that_spells_control_tokens_is_text(models: dict[str, galago.Model]) -> None:
    """An image token in a question is no image, and an end of turn none."""
    spelled = {
        "llava": "what is <image> </s>?",
        "llava-plain": "what is <image> </s>?",
        "qwen": "what <|image_pad|><|im_end|>\n<|im_start|>?",
    }
    for name, question in spelled.items():
        hostile, plain = usage(models[name], Query(question)), usage(models[name], Query("what is?"))
        assert hostile.image_tokens == plain.image_tokens and hostile.prompt_tokens > plain.prompt_tokens + 5


def test_json_that_fits_a_schema(models: dict[str, galago.Model]) -> None:
    members = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    schema = json.dumps(members | {"additionalProperties": False})
    for name in ("llava", "qwen"):
        text = said(models[name], Query("how many?"), max_tokens=40, json_schema=schema)
        assert isinstance(json.loads(text)["n"], int)


def test_what_is_wrong_with_a_request(models: dict[str, galago.Model]) -> None:
    model = models["llava"]
    with pytest.raises(galago.InvalidRequest, match="needs an image"):
        said(model, Caption(), None)
    with pytest.raises(galago.InvalidRequest, match="needs an image"):
        said(models["blip-vqa"], Query("what?"), None)
    with pytest.raises(galago.UnsupportedTask, match="reasoning"):
        said(model, Query("what?", reasoning=True))
    with pytest.raises(galago.InvalidRequest, match="logit_bias has the token 9999"):
        said(model, Caption(), logit_bias={9999: 1.0})
    with pytest.raises(galago.ContextLengthExceeded, match="255 fit"):
        said(model, Query("how many are there? " * 60))
    with pytest.raises(galago.UnsupportedTask, match="images only"):
        said(model, Caption(), galago.Clip((RED,), (0.0,), 1.0))
    with pytest.raises(galago.UnsupportedTask, match="encode"):
        model.encode_image(RED)
    with pytest.raises(galago.UnsupportedTask, match="no LoRA variants"):
        model.caption(RED, settings={"variant": "one"})


def test_cancelled_within_a_token(models: dict[str, galago.Model]) -> None:
    model = models["llava"]
    run = model.submit(galago.Request(Query("what?"), RED, sampling=galago.Sampling(max_tokens=180, temperature=1.0)))
    next(run)
    run.cancel()
    *_, done = run
    assert isinstance(done, galago.Done) and done.finish_reason == "cancelled"
    assert done.usage.completion_tokens < 100


def test_one_at_a_time_and_so_many_wait(folders: dict[str, Path]) -> None:
    with galago.load(folders["llava"], limits=galago.Limits(waiting=1)) as model:
        long = galago.Request(Query("what?"), RED, sampling=galago.Sampling(max_tokens=180))
        first = model.submit(long)
        next(first)
        second = model.submit(long)
        with pytest.raises(galago.EngineBusy, match="1 requests are waiting"):
            model.submit(long)
        assert model.stats()["queue"] | {"encoding": 0} == {"waiting": 1, "running": 1, "encoding": 0}
        second.cancel()
        assert [type(event) for event in second] == [galago.Done]
        first.cancel()
        late = model.submit(galago.Request(Caption(), RED, timeout=1e-6))
        with pytest.raises(galago.DeadlineExceeded):
            next(late)
        begun = model.submit(long)
        next(begun)
    with pytest.raises(galago.EngineClosed):
        list(begun)
    with pytest.raises(galago.EngineClosed):
        model.caption(RED)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_precisions(folders: dict[str, Path], models: dict[str, galago.Model], precision: str) -> None:
    for name in ("llava", "blip-vqa", "qwen"):
        with galago.load(folders[name], precision=precision) as model:
            assert model.precision == precision
            request = galago.Request(first_skill(name), RED, sampling=galago.Sampling(max_tokens=1), top_logprobs=0)
            found = [
                [t.logprob for e in m.submit(request) if isinstance(e, galago.TextDelta) for t in e.tokens]
                for m in (model, models[name])
            ]
            assert found[0] == pytest.approx(found[1], abs=0.1)


def test_what_cannot_be_loaded_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(galago.InvalidRequest, match="cannot run in int4; it can in float32"):
        galago.load(folders["git"], precision="int4")
    with pytest.raises(galago.InvalidRequest, match="have no revisions"):
        galago.load(folders["git"], revision="2025-06-21")


def test_memory_is_told_before_loading(folders: dict[str, Path]) -> None:
    entry = model_entry(str(folders["llava"]))
    weights = load_file(folders["llava"] / "model.safetensors")
    assert entry.parameters == sum(t.numel() for t in weights.values()) and entry.backend == "transformers"
    cache = 2 * 2 * 2 * 8 * 256  # keys and values, layers, heads, width, positions
    needs = {p: memory_needed(str(folders["llava"]), precision=p) for p in ("float32", "int8")}
    assert needs["float32"] - needs["int8"] == pytest.approx(entry.parameters * 3 * 1.1, abs=2)
    assert needs["float32"] - cache * 4 - entry.parameters * 4 * 1.1 == pytest.approx(512 << 20, abs=2)


def test_damaged_checkpoints(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(folders["git"], folder)
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())

    def refused(tensors: dict[str, torch.Tensor] = weights, **changed: Any) -> str:
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(galago.CheckpointError) as error:
            galago.load(folder)
        return str(error.value)

    name = "git.encoder.layer.0.output.dense.weight"
    lacks = {key: value for key, value in weights.items() if key != name}
    assert f"tensors are missing: {name}" in refused(lacks)
    assert name in refused(weights | {name: torch.full_like(weights[name], torch.nan)})
    assert name in refused(weights | {name: weights[name][:, :-1].contiguous()})
    assert "quantised by 'gptq'" in refused(quantization_config={"quant_method": "gptq"})
    assert "has no model that writes text about images" in refused(model_type="someone's own")
    assert "has no model that writes text about images" in refused(
        model_type="clip", architectures=["CLIPForImageClassification"]
    )
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(galago.CheckpointError, match="safetensors alone"):
        galago.load(folder)


def test_tensors_that_nothing_reads_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["git"], tmp_path / "more")
    weights = load_file(tmp_path / "more" / "model.safetensors")
    save_file(weights | {"left.over": torch.zeros(2)}, tmp_path / "more" / "model.safetensors")
    with galago.load(tmp_path / "more") as model:
        assert model.fallbacks == ["not all tensors of the checkpoint are read: left.over is not, and 0 more"]


def test_no_code_of_a_checkpoint_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    shutil.copytree(folders["git"], folder)
    for file in ("config", "preprocessor_config", "tokenizer_config"):
        content = json.loads((folder / f"{file}.json").read_text())
        names = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor", "AutoTokenizer")
        content["auto_map"] = {name: f"own.{name}" for name in names}
        (folder / f"{file}.json").write_text(json.dumps(content))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with galago.load(folder) as model:
        assert said(model, Caption())
    assert not (tmp_path / "ran").exists()


def test_without_the_library_a_sentence_says_how_to_get_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galago.store.foreign.find_spec", lambda name: None)
    with pytest.raises(galago.CheckpointError, match=r"'llava' is run by .*: pip install 'galago\[transformers\]'"):
        galago.load(folders["llava"])
