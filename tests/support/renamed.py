"""`galago` in a world of made-up names: a stand-in for the resolver, and a note of every connection.

    python -m renamed world.json serve …

The file has `names` (what each look-up of a name gives; the last counts for all further ones), `routes` (the port of
this machine where an address is, since no test may leave it) and `log` (a file for the addresses connected to).
"""

import json
import socket
import sys
from pathlib import Path
from typing import Any

from galago.cli.app import main

Address = tuple[Any, ...]


def pretend(names: dict[str, list[list[str]]], routes: dict[str, int], log: Path) -> None:
    real_lookup, real_connect = socket.getaddrinfo, socket.socket.connect

    def lookup(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        answers = names.get(host)
        if answers is None:
            return real_lookup(host, port, *args, **kwargs)
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (one, port)) for one in found]

    def connect(self: socket.socket, address: Address) -> None:
        with log.open("a") as file:
            file.write(f"{address[0]}\n")
        if address[0] in routes:
            address = ("127.0.0.1", routes[address[0]])
        elif address[0] != "127.0.0.1":
            raise ConnectionRefusedError("there is nothing at this address")
        real_connect(self, address)

    socket.getaddrinfo = lookup
    socket.socket.connect = connect  # type: ignore[method-assign]


if __name__ == "__main__":
    world = json.loads(Path(sys.argv[1]).read_text())
    pretend(world["names"], world["routes"], Path(world["log"]))
    sys.exit(main(sys.argv[2:]))
