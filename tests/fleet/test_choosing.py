"""Which model answers where nobody names one."""

import pytest
from installed import install

from galago.backends.memory_estimate import memory_needed
from galago.fleet.default_model import choose_default_model, model_from_environment, photo_models, recommend
from galago.store.catalog import entries, find

CPU = {"device": "cpu"}
PLENTY = 64 << 30


def need(name: str) -> int:
    return memory_needed(name, device="cpu")


def test_with_nothing_installed_it_is_the_bundled_one_and_how_to_have_another_is_told() -> None:
    chosen = choose_default_model(PLENTY, options=CPU)
    assert chosen.name == entries()[0].id == "scenes"
    assert "not about photographs" in chosen.reason and "`galago models pull moondream2`" in chosen.reason
    assert choose_default_model(PLENTY, "objects", CPU).name == "scenes"
    film = choose_default_model(PLENTY, "video", CPU)
    assert film.name == "motion" and "`galago models pull smolvlm2-2.2b`" in film.reason


def test_the_best_that_is_installed_is_the_first_of_the_catalogue() -> None:
    for entry in reversed(list(photo_models())):
        install(entry.id)
        chosen = choose_default_model(PLENTY, options=CPU)
        assert chosen.name == entry.id and chosen.reason.startswith(f"no model was named: {entry.id} answers")


def test_what_does_not_fit_is_tried_smaller_and_then_left_for_a_lesser_one() -> None:
    install("moondream2")
    install("smolvlm2-256m")
    assert choose_default_model(need("moondream2"), options=CPU).name == "moondream2"
    assert choose_default_model(need("moondream2") - 1, options=CPU).name == "moondream2-int4"
    assert choose_default_model(need("moondream2-int4") - 1, options=CPU).name == "smolvlm2-256m"
    nothing = choose_default_model(1_000_000_000, options=CPU)
    assert nothing.name == "scenes" and "moondream2 needs 3.5 GB, and 1.0 GB are free" in nothing.reason


@pytest.mark.parametrize("said", [{"precision": "int8"}, {"profile": "optimized"}])
def test_who_says_how_a_model_is_to_run_gets_no_smaller_one(said: dict[str, str]) -> None:
    install("moondream2")
    assert choose_default_model(need("moondream2-int8"), options=CPU | said).name == "moondream2"
    assert choose_default_model(need("moondream2-int8") - 1, options=CPU | said).name == "scenes"


def test_only_who_can_do_it_is_chosen() -> None:
    for name in ("moondream2", "smolvlm2-500m", "smolvlm-500m"):
        install(name)
    assert choose_default_model(PLENTY, "objects", CPU).name == "moondream2"
    assert choose_default_model(PLENTY, "video", CPU).name == "smolvlm2-500m"


def test_what_is_recommended_fits() -> None:
    assert recommend(PLENTY, None, need) == (find("moondream2"), "moondream2")
    assert recommend(need("moondream2-int4"), None, need) == (find("moondream2"), "moondream2-int4")
    smallest = min(need(f"{e.id}-int4") for e in photo_models())
    found = recommend(smallest, None, need)
    assert found is not None and need(found[1]) == smallest
    assert recommend(smallest - 1, None, need) is None


def test_the_environment_names_a_model_for_all_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_from_environment() is None
    for text, name in {"": None, " ": None, "moondream2": "moondream2", "smolvlm2 , scenes": "smolvlm2"}.items():
        monkeypatch.setenv("GALAGO_MODEL", text)
        assert model_from_environment() == name


def test_the_skills_of_the_catalogue_are_true() -> None:
    assert all(("objects" in e.can) == (e.family == "moondream") for e in entries())
    assert all(("video" in e.can) == (e.revision == "SmolVLM2") for e in entries())
