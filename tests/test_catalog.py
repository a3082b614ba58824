"""The catalogue names models, and is answered for in words."""

import pytest

from galago.catalog import Bundled, Hosted, entries, find, lookup, routes
from galago.errors import ModelNotFound
from galago.families.moondream.config import REVISIONS
from galago.precision import NAMES
from galago.routing import MEDIA, ways_of


def test_the_default_is_bundled():
    assert isinstance(entries()[0].source, Bundled)


def test_ids_and_aliases_are_unique_in_any_case():
    names = [n.lower() for e in entries() for n in (e.id, *e.aliases)] + [r.id.lower() for r in routes()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("entry", entries(), ids=lambda e: e.id)
def test_every_entry_can_be_served_by_what_there_is(entry):
    assert entry.revision in {"moondream": REVISIONS, "smolvlm": ("SmolVLM", "SmolVLM2")}[entry.family]
    assert entry.precisions and set(entry.precisions) <= set(NAMES)
    assert set(entry.memory) <= set(entry.precisions)
    assert entry.description and entry.license and entry.parameters
    assert isinstance(entry.source, Bundled) or entry.source.tokenizer.file == "tokenizer.json"


def test_only_the_newest_moondream_has_the_starmie_tokenizer():
    for entry in entries():
        if isinstance(entry.source, Hosted) and entry.family == "moondream":
            starmie = REVISIONS[str(entry.revision)].family == "starmie"
            assert (entry.source.tokenizer.repo == "moondream/starmie-v1") == starmie


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
