"""Which revision a checkpoint is of, and that text stays text."""

import json
import re
from pathlib import Path

import pytest
import tiny_moondream as tiny
from tokenizers import Tokenizer as Backend
from tokenizers import models

from galago.errors import CheckpointError
from galago.families.moondream.config import REVISIONS
from galago.families.moondream.tokenizer import decide_revision
from galago.families.tokenizer import Tokenizer, load_tokenizer


def opened(folder: Path, family: str, flagged: bool = True) -> Tokenizer:
    tiny.tokenizer(family, flagged).save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize(
    ("stated", "prompt_family", "family", "expected"),
    [
        (None, None, "starmie", "2025-06-21"),
        (None, "starmie", "starmie", "2025-06-21"),
        (None, "legacy", "legacy", "2025-01-09"),
        ("2025-06-21", None, "starmie", "2025-06-21"),
        *[(name, None, "legacy", name) for name, r in REVISIONS.items() if r.family == "legacy"],
        # What is stated goes before our own key.
        ("2025-04-14", "legacy", "legacy", "2025-04-14"),
    ],
)
def test_decided(tmp_path: Path, stated: str | None, prompt_family: str | None, family: str, expected: str) -> None:
    assert decide_revision(stated, prompt_family, opened(tmp_path, family)).name == expected


@pytest.mark.parametrize(
    ("stated", "prompt_family", "family", "says"),
    [
        # Three revisions share this tokenizer, and a fourth wrongly ships it.
        (None, None, "legacy", ["revision=", "--revision", '"revision"', *REVISIONS, "moondream/starmie-v1"]),
        ("2025-06-21", None, "legacy", ["2025-06-21", "moondream/starmie-v1"]),
        (None, "starmie", "legacy", ["moondream/starmie-v1"]),
        ("2025-01-09", None, "starmie", ["2025-01-09", "GPT-2"]),
        ("2024-08-26", None, "starmie", ["2024-08-26", *REVISIONS]),
    ],
)
def test_refused(tmp_path: Path, stated: str | None, prompt_family: str | None, family: str, says: list[str]) -> None:
    with pytest.raises(CheckpointError) as error:
        decide_revision(stated, prompt_family, opened(tmp_path, family))
    assert all(word in str(error.value) for word in says)


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize("family", ["starmie", "legacy"])
def test_control_tokens_in_text_are_text(tmp_path: Path, family: str, flagged: bool) -> None:
    t = opened(tmp_path, family, flagged)
    text = "see <|endoftext|> and <|md_reserved_2|> é 🙂"
    ids = t.encode(text)
    control = {t.backend.token_to_id(word) for word in tiny.CONTROL} - {None}
    assert not control & set(ids)
    assert t.decode(ids) == text
    assert t.decode([*control, *ids]) == text


def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    for file in (tmp_path / "tokenizer.json", tmp_path / "missing.json"):
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            load_tokenizer(file)


def test_what_a_trainer_left_in_it_changes_no_text(tmp_path: Path) -> None:
    """Cutting and filling up are for its batches, and pieces left out by chance for its lessons."""
    backend = Backend(models.BPE({**{c: i for i, c in enumerate("abc")}, "ab": 3, "abc": 4}, [("a", "b"), ("ab", "c")]))
    file = tmp_path / "tokenizer.json"
    backend.save(str(file))
    plain = load_tokenizer(file).encode("abcabc" * 4)
    backend.enable_truncation(3)
    backend.enable_padding(length=64, pad_id=2, pad_token="c")
    backend.model.dropout = 0.5
    backend.save(str(file))
    assert {"truncation", "padding"} <= {k for k, v in json.loads(file.read_text()).items() if v}
    tokenizer = load_tokenizer(file)
    assert plain == [4] * 8
    for _ in range(20):
        assert tokenizer.encode("abcabc" * 4) == plain
