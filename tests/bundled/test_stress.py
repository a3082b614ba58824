"""Many mixed requests at once answer as each does alone, and every one of them ends."""

from collections import Counter
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from engine_stress import alone, differences, off_alone, together
from stress_requests import FAILS, draw_requests

from galago import Model
from galago.backends.native import Native
from galago.engine.limits import Limits
from galago.families.moondream.loading import load_moondream
from galago.families.moondream.model import Moondream
from galago.precision import pick_precision
from galago.request import Query, Request
from galago.store import hub

CPU = torch.device("cpu")
SEED = 4


class Muddling:
    """A model that carries every fifth request out as another one."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._count = 0

    def encode_image(self, *args: Any) -> Any:
        return self._model.encode_image(*args)

    def submit(self, request: Request) -> Any:
        self._count += 1
        return self._model.submit(request if self._count % 5 else replace(request, skill=Query("What?")))


@pytest.fixture(scope="module", params=["float32", "int8"])
def loaded(request: pytest.FixtureRequest) -> Moondream:
    return load_moondream(hub.locate("scenes"), precision=pick_precision(request.param, CPU), device=CPU)


@pytest.mark.slow
def test_at_once_as_alone(loaded: Moondream) -> None:
    asked = draw_requests(SEED, 60)
    wanted = alone(lambda: Model(Native(loaded)), asked)
    assert [off for one, ending in zip(asked, wanted, strict=True) if (off := off_alone(one, ending))] == []
    # A short queue, so that clients are refused and come again.
    with Model(Native(loaded, Limits(waiting=6, running=12))) as model:
        for _ in range(2):  # the second time on images that the model has seen
            found = together(model, asked, clients=4, at_once=10)
            assert differences(asked, wanted, found) == []
    kinds = Counter(ending.kind for ending in found.values())
    assert kinds["failed"] == sum(one.kind in FAILS for one in asked)
    assert kinds["cancelled"] > 0 and kinds["done"] > 30 and kinds.total() == len(asked)


@pytest.mark.parametrize("loaded", ["int8"], indirect=True)
def test_a_muddle_is_found_out(loaded: Moondream) -> None:
    asked = [one for one in draw_requests(SEED, 30) if one.kind not in FAILS and one.cancel == "never"]
    wanted = alone(lambda: Model(Native(loaded)), asked)
    with Model(Native(loaded)) as model:
        found = together(cast(Model, Muddling(model)), asked, clients=1, at_once=4)
    assert len(differences(asked, wanted, found)) == len(asked) // 5
    del found[asked[0].number]
    assert any("never ended" in line for line in differences(asked, wanted, found))
