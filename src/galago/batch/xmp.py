"""XMP sidecars: descriptions and keywords as photo managers read them (ISO 16684-1). What else is there stays."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "lr": "http://ns.adobe.com/lightroom/1.0/",
    "digiKam": "http://www.digikam.org/ns/1.0/",
    "darktable": "http://darktable.sf.net/",
}
"""Names that a file keeps when it is written again; those of others are kept as they were declared."""
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
DEFAULT = "x-default"
MAX_BYTES = 16 << 20
_EMPTY = f'<x:xmpmeta xmlns:x="{NAMESPACES["x"]}"><rdf:RDF xmlns:rdf="{NAMESPACES["rdf"]}"/></x:xmpmeta>'
_BEGIN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
"""With the id that the standard gives."""
_END = '\n<?xpacket end="w"?>\n'


def sidecar_path(picture: Path) -> Path:
    """photo.jpg.xmp, which does not mix up photo.jpg and photo.png; photo.xmp where that is there alone already."""
    beside = picture.with_name(picture.name + ".xmp")
    without = picture.with_suffix(".xmp")
    return without if without.exists() and not beside.exists() else beside


def read_description(path: Path) -> str:
    """The description in a sidecar; empty where there is none. Raises OSError, and ValueError for what is no XMP."""
    rdf = _rdf(_read(path))
    found = rdf.find(f".//{_tag('dc:description')}")
    if found is None:
        held = (d.get(_tag("dc:description")) for d in rdf.findall(_tag("rdf:Description")))
        return next((text.strip() for text in held if text), "")
    texts = [li.text or "" for li in found.iter(_tag("rdf:li"))] or [found.text or ""]
    return texts[0].strip()


def with_answers(path: Path, description: str, keywords: Sequence[str]) -> str:
    """The XMP of a sidecar, or a new one, with this description in place of its own, and keywords besides its own."""
    root = _read(path) if path.exists() else ElementTree.fromstring(_EMPTY)
    rdf = _rdf(root)
    described = rdf.find(_tag("rdf:Description"))
    if described is None:
        described = ElementTree.SubElement(rdf, _tag("rdf:Description"), {_tag("rdf:about"): ""})
    if description:
        for one in rdf.findall(_tag("rdf:Description")):
            one.attrib.pop(_tag("dc:description"), None)
            for old in one.findall(_tag("dc:description")):
                one.remove(old)
        alternatives = ElementTree.SubElement(
            ElementTree.SubElement(described, _tag("dc:description")), _tag("rdf:Alt")
        )
        ElementTree.SubElement(alternatives, _tag("rdf:li"), {LANGUAGE: DEFAULT}).text = _printable(description)
    if keywords:
        bag = rdf.find(f".//{_tag('dc:subject')}/{_tag('rdf:Bag')}")
        if bag is None:
            bag = ElementTree.SubElement(ElementTree.SubElement(described, _tag("dc:subject")), _tag("rdf:Bag"))
        there = {li.text for li in bag}
        for word in keywords:
            if word not in there:
                ElementTree.SubElement(bag, _tag("rdf:li")).text = _printable(word)
    return _BEGIN + ElementTree.tostring(root, encoding="unicode") + _END


def _tag(name: str) -> str:
    prefix, _, local = name.partition(":")
    return f"{{{NAMESPACES[prefix]}}}{local}"


def _read(path: Path) -> ElementTree.Element:
    """The root of a file. Raises ValueError for one that is no XML, or has a DOCTYPE, which XMP has none of."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
    data = path.read_bytes()
    if b"<!DOCTYPE" in data:
        raise ValueError("it has a DOCTYPE, which no XMP has")
    try:
        for _, (prefix, address) in ElementTree.iterparse(io.BytesIO(data), ["start-ns"]):
            if address not in NAMESPACES.values() and prefix and not re.fullmatch(r"ns\d+", prefix):
                ElementTree.register_namespace(prefix, address)
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"it is no XML: {error}") from error


def _rdf(root: ElementTree.Element) -> ElementTree.Element:
    found = root if root.tag == _tag("rdf:RDF") else root.find(_tag("rdf:RDF"))
    if found is None:
        raise ValueError("it is no XMP: there is no rdf:RDF in it")
    return found


def _printable(text: str) -> str:
    """Without what XML cannot hold."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "", text)


for _prefix, _address in NAMESPACES.items():
    ElementTree.register_namespace(_prefix, _address)
