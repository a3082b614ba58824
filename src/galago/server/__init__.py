"""The HTTP server: dialects that translate JSON to requests and events back to JSON."""
