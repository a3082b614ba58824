"""Many machines: work that is spread over a Ray cluster."""
