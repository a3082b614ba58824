"""Models and the life of a process: forks, and main threads that end before the others."""

import os

import pytest
from program import ran

FORKED = """
    import gc, os, signal, sys, threading
    import galago
    from galago.engine import metrics
    from galago.request import Query, Request
    from PIL import Image

    IMAGE = Image.effect_noise((300, 200), 50).convert("RGB")

    def in_child(*work):
        pid = os.fork()
        if not pid:
            signal.alarm(90)  # ends what hangs
            for one in work:
                try:
                    print(one(), flush=True)
                except galago.GalagoError as error:
                    print(error.code, "load it in this process" in str(error), flush=True)
            sys.exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_a_model_of_before_a_fork_refuses() -> None:
    """At once, whatever is asked of it; it can be closed, and let go; and one that the child loads answers."""
    out = ran(
        FORKED
        + """
    model = galago.load()
    before = model.query(IMAGE, "what shape?")
    run = model.submit(Request(Query("what shape?"), IMAGE))
    encoded = model.encode_image(IMAGE)

    def asked():
        return model.query(IMAGE, "what shape?")

    def in_time():
        return [*model.submit(Request(Query("what shape?"), timeout=5))]

    def closed():
        with model:
            model.trim()
        return model.waiting

    def let_go():
        global model, run, encoded
        del model, run, encoded
        return gc.collect() >= 0

    def own():
        # What the parent did is not the child's.
        assert b'skill="query"' not in metrics.exposition()
        with galago.load() as mine:
            return mine.query(IMAGE, "what shape?") == before and b'skill="query"' in metrics.exposition()

    def scrape():  # takes the lock of the metrics as often as it can
        while True:
            model.stats()
    threading.Thread(target=scrape, daemon=True).start()
    in_child(asked, in_time, lambda: model.encode_image(IMAGE), lambda: [*run], run.poll, closed)
    in_child(let_go, own)
    print("parent", model.query(encoded, "what shape?") == before, len([*run]) > 1)
    """
    )
    assert out.splitlines() == [*["shutting_down True"] * 5, "0", "True", "True", "parent True True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_a_server_of_before_a_fork_loads_its_models_anew() -> None:
    """As with gunicorn --preload: the app and its pool are made, and even used, before the workers are."""
    out = ran(
        FORKED
        + """
    from fastapi.testclient import TestClient
    from galago.fleet.pool import ModelPool
    from galago.server.app import create_app

    pool = ModelPool(keep_alive=0)
    app = create_app(pool)
    held, over = threading.Event(), threading.Event()

    def hold():
        with pool._condition:
            held.set()
            over.wait()

    def answered():
        with TestClient(app, base_url="http://localhost") as client:
            app.state.startup.result()
            body = {"messages": [{"role": "user", "content": "what shape?"}], "max_tokens": 4}
            said = client.post("/v1/chat/completions", json=body), client.get("/health"), client.get("/metrics")
            return [reply.status_code for reply in said]

    with pool.use("scenes") as model:
        before = model.query(IMAGE, "what shape?")
        holder = threading.Thread(target=hold, daemon=True)
        holder.start()
        held.wait()
        in_child(answered)
        over.set()
        holder.join()
        assert model.query(IMAGE, "what shape?") == before
    """
    )
    assert out.splitlines() == ["[200, 200, 200]"]


def test_a_thread_goes_on_asking_when_the_main_thread_has_ended() -> None:
    """Python takes no more work for its pools of threads by then, and gives no new pool."""
    out = ran("""
        import concurrent.futures.thread as pools, sys, threading
        import galago
        from PIL import Image

        model = galago.load()
        IMAGES = [Image.effect_noise((300, 200 + i), 50).convert("RGB") for i in range(3)]
        before = [model.query(image, "what shape?") for image in IMAGES]
        model.trim()

        def go_on():
            while not pools._shutdown:
                pass
            print([model.query(image, "what shape?") for image in IMAGES] == before, flush=True)

        threading.Thread(target=go_on).start()
        """)
    assert out.split() == ["True"]


def test_a_first_load_when_the_main_thread_has_ended() -> None:
    out = ran("""
        import threading
        import galago

        def work():
            threading.main_thread().join()
            with galago.load() as model:
                print("answer" in model.query(None, "what shape?"))

        threading.Thread(target=work).start()
        """)
    assert out.split() == ["True"]


def test_a_program_ends_though_its_engines_work() -> None:
    """Their threads stop at the next step, and none computes while Python takes itself apart."""
    out = ran("""
        from standin import Plan, Standin, ask, picture
        from galago.engine.engine import Engine

        engines = [Engine(Standin()) for _ in range(3)]
        runs = [engine.submit(ask(Plan(steps=5000), picture(i))) for engine in engines for i in range(3)]
        for run in runs:
            next(run)
        print("over")
        """)
    assert out.split() == ["over"]
