"""The catalogue names models, and is answered for in words."""

import pytest

from galago.backends.backend import BACKENDS, NATIVE
from galago.errors import CheckpointError, ModelNotFound
from galago.families.moondream.config import REVISIONS
from galago.fleet.routing import MEDIA, ways_of
from galago.precision import NAMES
from galago.store import hub
from galago.store.catalog import Bundled, Hosted, entries, find, lookup, routes, with_precision
from galago.store.repository import repository


def test_the_default_is_bundled():
    assert isinstance(entries()[0].source, Bundled)


def test_ids_and_aliases_are_unique_in_any_case():
    names = [n.lower() for e in entries() for n in (e.id, *e.aliases)] + [r.id.lower() for r in routes()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("entry", entries(), ids=lambda e: e.id)
def test_every_entry_can_be_served_by_what_there_is(entry):
    assert entry.backend in BACKENDS
    if entry.backend == NATIVE:
        assert entry.revision in {"moondream": REVISIONS, "smolvlm": ("SmolVLM", "SmolVLM2")}[entry.family]
        assert isinstance(entry.source, Bundled) or entry.source.tokenizer.file == "tokenizer.json"
    else:
        assert isinstance(entry.source, Hosted) or repository(entry.source.repository)
        assert set(entry.counted) | set(entry.memory) == set(entry.precisions)
    assert entry.precisions and set(entry.precisions) <= set(NAMES)
    assert set(entry.memory) <= set(entry.precisions)
    assert entry.description and entry.license and entry.parameters


def test_only_the_newest_moondream_has_the_starmie_tokenizer():
    for entry in entries():
        if isinstance(entry.source, Hosted) and entry.family == "moondream":
            starmie = REVISIONS[str(entry.revision)].family == "starmie"
            assert (entry.source.tokenizer.repo == "moondream/starmie-v1") == starmie


SPELLINGS = {
    "2b": ("moondream2", None),
    "2b-int8": ("moondream2", "int8"),
    "2b-int4": ("moondream2", "int4"),
    "moondream2": ("moondream2", None),
    "moondream2-int8": ("moondream2", "int8"),
    "moondream-2": ("moondream2", None),
    "moondream-2B": ("moondream2", None),
    "moondream-2b-int8": ("moondream2", "int8"),
    "Moondream2_INT8": ("moondream2", "int8"),
    "vikhyatk/moondream2": ("moondream2", None),
    "vikhyatk/moondream2@2025-06-21": ("moondream2", None),
    "vikhyatk/moondream2@2025-01-09": ("moondream2-2025-01-09", None),
    "moondream2@2025-04-14-fp16": ("moondream2-2025-04-14", "float16"),
    "SmolVLM-256M-Instruct": ("smolvlm-256m", None),
    "SmolVLM-256M-Instruct-int8": ("smolvlm-256m", "int8"),
    "SmolVLM-500M-Instruct": ("smolvlm-500m", None),
    "SmolVLM-500M-Instruct-int8": ("smolvlm-500m", "int8"),
    "smolvlm": ("smolvlm-500m", None),
    "Florence-2-base": ("florence-2-base", None),
    "microsoft/Florence-2-large": ("florence-2-large", None),
    "florence2-int8": ("florence-2-base", "int8"),
    "llava": ("llava-7b", None),
    "llava-hf/llava-1.5-7b-hf": ("llava-7b", None),
    "Salesforce/blip-image-captioning-base": ("blip-base", None),
    "smolvlm2": ("smolvlm2-500m", None),
    "smolvlm2-500": ("smolvlm2-500m", None),
    "smolvlm2_500m_video": ("smolvlm2-500m", None),
    "SmolVLM2_500M_Video-int4": ("smolvlm2-500m", "int4"),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct@main": ("smolvlm2-2.2b", None),
}
REFUSED = {
    "0.5b-int8": "Moondream 0.5B was published for",
    "0_5b-int4": "Moondream 0.5B was published for",
    "0.5B": "Moondream 0.5B was published for",
    "moondream3-preview": "Moondream 3 .* is not supported yet",
    "moondream3-preview-int8": "Moondream 3 .* is not supported yet",
    "moondream/moondream3-preview": "Moondream 3 .* is not supported yet",
    "phi3_vision": "Phi-3 Vision is not supported",
    "phi3_vision_optimized": "Phi-3 Vision is not supported",
    "llava_mlx": "LLaVA is not supported",
    "openai/clip-vit-base-patch32": "CLIP tells how alike",
    "yolo8": "YOLOv8 is not supported",
    "moondream-2b-int8.mf": "moondream-2b-int8.mf is not read, .* take moondream2-int8",
    "moondream-2b-int8.mf.gz": "moondream-2b-int8.mf.gz is not read, .* take moondream2-int8",
    "models/moondream-0_5b-int4.mf.gz": "is not read, .* Moondream 0.5B was published for",
    "vikhyatk/moondream2@2024-08-26": r"vikhyatk/moondream2 is here at 2025-06-21, .* not at '2024-08-26'",
    "moondream2@main": "moondream2 is here at 2025-06-21, ",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_users_of_other_tools_type(name):
    assert (find(name).id, with_precision(name)[1]) == SPELLINGS[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_known_and_cannot_be_served_has_a_sentence_of_its_own(name):
    with pytest.raises(ModelNotFound, match=REFUSED[name]) as said:
        find(name)
    assert "known are" not in str(said.value) and "\n" not in str(said.value)


def test_a_file_of_weights_that_is_there_and_cannot_be_read(tmp_path):
    for name in ("moondream-2b-int8.mf", "moondream-2b-int8.mf.gz", "model.onnx"):
        (tmp_path / name).write_bytes(b"weights")
        with pytest.raises(CheckpointError, match=f"^{name} is not read, since it holds weights of "):
            hub.locate(tmp_path / name)


def test_a_name_of_any_length_is_a_short_error():
    for name in ("x" * 100_000, f"{'x' * 1000}/{'y' * 100_000}", f"moondream2@{'z' * 100_000}", f"{'m' * 100_000}.mf"):
        with pytest.raises(ModelNotFound) as said:
            find(name)
        assert len(str(said.value)) <= 500


def test_find_by_id_alias_and_any_case():
    assert find("Moondream2").id == find("vikhyatk/moondream2").id == find("2B").id == "moondream2"


@pytest.mark.parametrize("route", routes(), ids=lambda r: r.id)
def test_a_route_leads_to_models_that_see_what_they_take_and_ends_with_the_smallest(route):
    assert route.description and lookup(f"{route.id}-INT8") is route
    for way in ways_of(route.id, {}):
        assert set(way.takes) <= set(MEDIA)
        sizes = [find(model).parameters for model in way.models]
        assert sizes == sorted(sizes, reverse=True)
        assert "video" not in way.takes or all(find(model).revision == "SmolVLM2" for model in way.models)


def test_an_unknown_name_is_told_with_the_closest_and_all_known():
    with pytest.raises(ModelNotFound, match=r"'moondrem2'; did you mean moondream2\? \(known are scenes, ") as said:
        find("moondrem2")
    assert all(e.id in str(said.value) for e in entries())
