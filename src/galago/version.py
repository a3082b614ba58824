"""Which version this is, and how it names itself to other servers."""

from importlib.metadata import PackageNotFoundError, metadata

try:
    _ABOUT = metadata("galago")
    INSTALLED: str | None = _ABOUT["Version"]
    # "Homepage, https://..." and its kin, where the package names one.
    _PAGES = [entry.partition(",")[2].strip() for entry in _ABOUT.get_all("Project-URL") or ()]
except PackageNotFoundError:  # run from a source tree that is not installed
    INSTALLED, _PAGES = None, []

VERSION = INSTALLED or "0+source"
USER_AGENT = f"Galago/{VERSION} ({f'+{_PAGES[0]}' if _PAGES else 'vision-language models, run by whoever hosts them'})"
"""Hosts of pictures turn away those that do not say who they are."""
