"""Files beside the pictures, as trainers and photo managers read them; what people wrote stays."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from galago.batch.sidecars import SIDECARS
from galago.cli.app import main

ROW: dict[str, Any] = {
    "image": "photo.jpg",
    "model": "m-int8",
    "caption": "Two cats,\n asleep & <warm>.",
    "objects": {"cat": [{"x_min": 0.1, "y_min": 0.1, "x_max": 0.2, "y_max": 0.2}], "dog": []},
}
LIGHTROOM = """<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:mine="http://example.com/mine/"
  xmp:Rating="4" mine:note="kept">
<dc:subject xmlns:dc="http://purl.org/dc/elements/1.1/"><rdf:Bag><rdf:li>holiday</rdf:li></rdf:Bag></dc:subject>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end='w'?>"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, name in enumerate(("a.png", "b.jpg", "c.png")):
        Image.linear_gradient("L").rotate(20 * n).resize((70 + n, 50)).convert("RGB").save(folder / name)
    return folder


def batch(*words: object) -> int:
    return main(["batch", *map(str, words), "--max-tokens", "8"])


def sidecar(kind: str, picture: Path, record: dict[str, Any] = ROW) -> Path:
    path = SIDECARS[kind].path(picture)
    path.write_text(SIDECARS[kind].written(path, record), "utf-8")
    return path


def exiftool(path: Path) -> dict[str, Any]:
    if shutil.which("exiftool") is None:
        pytest.skip("needs exiftool (apt-get install libimage-exiftool-perl)")
    ran = subprocess.run(["exiftool", "-j", "-G1", str(path)], capture_output=True, check=True)
    [told] = json.loads(ran.stdout)
    return {name.partition(":")[2]: value for name, value in told.items() if name.startswith("XMP")}


def test_a_text_is_one_line_beside_its_picture(tmp_path):
    path = sidecar("txt", tmp_path / "photo.jpg")
    assert path.name == "photo.txt" and path.read_text() == "Two cats, asleep & <warm>.\n"
    asked = {"answers": {"Who?": "A cat.", "Where?": "Indoors."}, "objects": ROW["objects"]}
    assert sidecar("txt", tmp_path / "photo.jpg", asked).read_text() == "A cat., Indoors., cat\n"


def test_json_is_the_row(tmp_path):
    path = sidecar("json", tmp_path / "photo.jpg")
    assert path.name == "photo.jpg.json" and json.loads(path.read_text()) == ROW


def test_exiftool_reads_the_description_and_the_keywords(tmp_path):
    path = sidecar("xmp", tmp_path / "photo.jpg")
    assert path.name == "photo.jpg.xmp"
    told = exiftool(path)
    assert told["Description"].split() == ROW["caption"].split() and told["Subject"] == "cat"


def test_what_a_photo_manager_wrote_stays(tmp_path):
    path = tmp_path / "photo.xmp"
    path.write_text(LIGHTROOM, "utf-8")
    assert sidecar("xmp", tmp_path / "photo.jpg") == path
    sidecar("xmp", tmp_path / "photo.jpg", {**ROW, "caption": "Other."})
    text = path.read_text("utf-8")
    assert text.count("Other.") == 1 and "Two cats" not in text and 'mine:note="kept"' in text
    told = exiftool(path)
    assert told["Rating"] == 4 and told["Description"] == "Other."
    assert sorted(told["Subject"]) == ["cat", "holiday"]


def test_letters_that_xml_cannot_hold_are_left_out(tmp_path):
    path = sidecar("xmp", tmp_path / "photo.jpg", {**ROW, "caption": "a\x00b\x0bc\ud800d é 猫"})
    assert SIDECARS["xmp"].caption(path) == "ab cd é 猫"


@pytest.mark.parametrize("kind", SIDECARS)
def test_pictures_that_have_a_caption_are_left_alone(photos, kind, capsys):
    theirs = sidecar(kind, photos / "b.jpg")
    before = theirs.read_bytes()
    assert batch(photos, "--sidecar", kind, "--model", "scenes", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["asked"] == 2 and told["kept"] == 1
    assert theirs.read_bytes() == before and SIDECARS[kind].path(photos / "a.png").exists()
    assert batch(photos, "--sidecar", kind, "--model", "scenes", "--force") == 0
    assert theirs.read_bytes() != before


def test_beside_an_output_every_picture_is_asked_about(photos, tmp_path, capsys):
    theirs = sidecar("txt", photos / "b.jpg")
    out = tmp_path / "out.jsonl"
    assert batch(photos, "--sidecar", "txt", "--out", out, "--model", "scenes") == 0
    assert len(out.read_bytes().splitlines()) == 3
    assert theirs.read_text() == "Two cats, asleep & <warm>.\n"
    assert "1 sidecar with a caption left alone" in capsys.readouterr().err


def test_two_pictures_do_not_share_a_text(photos, capsys):
    shutil.copy(photos / "a.png", photos / "b.png")
    assert batch(photos, "--sidecar", "txt", "--model", "scenes") == 1
    assert "is the sidecar of" in capsys.readouterr().err
    assert batch(photos, "--sidecar", "xmp", "--model", "scenes") == 0
    assert {p.name for p in photos.glob("*.xmp")} == {"a.png.xmp", "b.jpg.xmp", "b.png.xmp", "c.png.xmp"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [("xmp", "<not xml"), ("xmp", "<a/>"), ("xmp", "<!DOCTYPE a><a/>"), ("json", "[}"), ("txt", b"\xff\xfe\x00")],
)
def test_a_sidecar_that_cannot_be_read_is_named_and_left(photos, capsys, kind, text):
    path = SIDECARS[kind].path(photos / "b.jpg")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    assert batch(photos, "--sidecar", kind, "--model", "scenes") == 1
    assert f"{path} cannot be read, and is left as it is" in capsys.readouterr().err
    assert path.read_bytes() == before and SIDECARS[kind].path(photos / "c.png").exists()
