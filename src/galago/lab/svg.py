"""SVG documents: the frame that all plots have."""

from collections.abc import Iterable
from html import escape

from galago.system.outputs import MARK


def svg_document(width: int, height: int, title: str, body: Iterable[str]) -> str:
    """A white picture of so many pixels under its title, whose baseline is at 28; `body` are the elements below it."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13" fill="#222">',
        f"<desc>{MARK}</desc>",
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="16" y="28" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    return "\n".join([*lines, *body, "</svg>", ""])
