"""Where a server's models are, and what they may take."""

from galago.fleet.pool import ModelPool
from galago.server.settings import ServerSettings


def make_pool(settings: ServerSettings) -> ModelPool:
    """Where the models will be."""
    import galago
    from galago.engine.decoding import MAX_DECODED_BYTES, MEMORY_DIVISOR, set_decoding_limit

    options = {name: getattr(settings, name) for name in ("precision", "profile", "device", "revision", "threads")}
    options["limits"] = galago.Limits(waiting=settings.max_queue, running=settings.max_batch_size)
    budget = None if settings.max_memory_gb is None else int(settings.max_memory_gb * 1e9)
    pool = ModelPool(budget, keep_alive=None, options=options)
    share = min(MAX_DECODED_BYTES, pool.budget // MEMORY_DIVISOR)
    set_decoding_limit(share if settings.decode_memory_mb is None else int(settings.decode_memory_mb * (1 << 20)))
    return pool
