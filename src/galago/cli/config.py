"""galago config"""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from galago.cli.options import expand_groups
from galago.cli.server_flags import ConfigOption, ModelNames, ServerFlags, read_server_settings
from galago.cli.streams import print_json

EXAMPLES = """\b
Examples:
  galago config
  galago config --config galago.toml --port 9000 --json"""


@expand_groups
def config(
    names: ModelNames = None,
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    *,
    flags: ServerFlags,
) -> None:
    """Tell what `galago serve` would do with the same flags, and where each setting comes from."""
    found = read_server_settings(names, flags, config)
    told = {setting: _hide_secrets(setting, value) for setting, value in asdict(found.settings).items()}
    if json:
        both = {setting: {"value": value, "from": found.origins[setting]} for setting, value in told.items()}
        print_json(both)
        return
    rows = [(setting, _format_value(value), found.origins[setting]) for setting, value in told.items()]
    first, second = (max(len(row[column]) for row in rows) for column in range(2))
    for setting, value, origin in rows:
        typer.echo(f"{setting:{first}}  {value:{second}}  {origin}")


def _hide_secrets(setting: str, value: Any) -> Any:
    from galago.server.settings import SECRET

    if setting not in SECRET or value is None:
        return value
    # Four letters tell which key it is, and of a short one too much.
    hidden = [f"…{key[-4:]}" if len(key) > 8 else "…" for key in ([value] if isinstance(value, str) else value)]
    return hidden[0] if isinstance(value, str) else hidden


def _format_value(value: Any) -> str:
    match value:
        case None | () | []:
            return "-"
        case bool():
            return "true" if value else "false"
        case tuple() | list():
            return ", ".join(value)
    return str(value)
