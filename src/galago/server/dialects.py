"""The dialects that the server speaks: a new one is a file that ends in a Dialect, and its name here."""

from galago.server.moondream import MOONDREAM
from galago.server.ollama import OLLAMA
from galago.server.openai import OPENAI
from galago.server.responses import RESPONSES

DIALECTS = (OPENAI, RESPONSES, MOONDREAM, OLLAMA)
ROUTES = {path: route for dialect in DIALECTS for route in dialect.routes for path in route.paths}
__all__ = ["DIALECTS", "MOONDREAM", "OLLAMA", "OPENAI", "RESPONSES", "ROUTES"]
