"""The flags of `galago serve` and `galago worker`, and the settings that follow from them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galago.cli.options import PrecisionOption, ProfileOption, RevisionOption, Texts, ThreadsOption

if TYPE_CHECKING:
    from galago.server.setting_sources import EffectiveSettings

ModelNames = Annotated[
    Texts, typer.Argument(metavar="[MODEL]...", help="The same as --model; the first is the default.")
]


@dataclass(frozen=True)
class EngineFlags:
    """The models, and how they run."""

    model: Annotated[
        Texts,
        typer.Option(
            "--model",
            "-m",
            help="A name of `galago models`, a folder or weights file; by default the best that is installed and fits.",
        ),
    ] = None
    profile: ProfileOption = None
    precision: PrecisionOption = None
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps; auto takes the best there is.")] = None
    revision: RevisionOption = None
    threads: ThreadsOption = None
    max_memory_gb: Annotated[
        float | None, typer.Option(help="GB that models may take in memory, with their caches and keys and values.")
    ] = None
    decode_memory_mb: Annotated[
        float | None,
        typer.Option(
            help="MiB that pictures may take while they are decoded, and as much again the frames of videos; "
            "others wait. By default an eighth of what models may take, 512 at the most."
        ),
    ] = None
    max_batch_size: Annotated[int | None, typer.Option(help="Requests that are carried out together. (16)")] = None
    max_queue: Annotated[int | None, typer.Option(help="Requests that may wait; more are refused (429). (64)")] = None


@dataclass(frozen=True)
class RequestFlags:
    """How requests are carried out."""

    timeout: Annotated[
        float | None, typer.Option(help="Seconds for a request that names no limit of its own (504); by default none.")
    ] = None
    grace_s: Annotated[
        int | None, typer.Option(help="Seconds that a stop may take; requests have all but the last two to finish. (8)")
    ] = None
    several_images: Annotated[
        str | None,
        typer.Option(help="Several images for a model that takes one: refuse, or sheet to show them as one. (refuse)"),
    ] = None
    max_image_side: Annotated[
        int | None,
        typer.Option(help="Pixels of an image's longer side; larger ones are made smaller, and are answered sooner."),
    ] = None
    detail: Annotated[
        str | None,
        typer.Option(help="How images are looked at where a request does not say: high, or low: quicker, and coarser."),
    ] = None
    remote_images: Annotated[bool | None, typer.Option(help="Fetch images that are given by URL. (on)")] = None
    allow_image_hosts: Annotated[
        Texts,
        typer.Option(
            "--allow-image-host", metavar="HOST", help="A private host that such URLs may name; may be given again."
        ),
    ] = None
    strict_model_names: Annotated[
        bool | None, typer.Option(help="Refuse requests that name another model (404). (off)")
    ] = None
    assistant_compat: Annotated[
        bool | None, typer.Option(help="Tell times as texts too, as the AI Manual Assistant's servers do. (off)")
    ] = None


@dataclass(frozen=True)
class HttpFlags:
    """How they come and go over HTTP."""

    host: Annotated[
        str | None, typer.Option(help="The address to listen at (127.0.0.1); 0.0.0.0 lets other machines in.")
    ] = None
    port: Annotated[int | None, typer.Option(help="0 takes one that is free, and tells it. (8080)")] = None
    max_connections: Annotated[
        int | None, typer.Option(help="Connections that may be open; more are closed with a 503. (512)")
    ] = None
    body_limit_mb: Annotated[float | None, typer.Option(help="MiB that the body of a request may have. (32)")] = None
    api_keys: Annotated[
        Texts,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="Let in only who has a key; may be given again. Other users of the machine can see it: "
            "GALAGO_API_KEYS and --api-key-file hide it.",
        ),
    ] = None
    api_key_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file of keys, one a line; # begins a comment.")
    ] = None
    cors_origins: Annotated[
        Texts,
        typer.Option(
            "--cors-origin",
            metavar="ORIGIN",
            help="A site whose pages may call the server, or * for all; pages of this machine may. May be given again.",
        ),
    ] = None
    log_content: Annotated[bool | None, typer.Option(help="Let prompts and answers into the log. (off)")] = None
    jobs: Annotated[
        bool | None,
        typer.Option(help="Let requests be jobs (/v1/jobs), which are kept and carried out in the background. (off)"),
    ] = None
    meme_search_legacy: Annotated[
        bool | None, typer.Option(help="Take jobs without attempt_id and callback_token, as before May 2026. (off)")
    ] = None


@dataclass(frozen=True)
class JobFlags:
    """The queue of jobs."""

    jobs_db: Annotated[
        str | None,
        typer.Option(
            "--jobs-db",
            "--job-db",
            metavar="FILE|URL",
            help="Keep jobs in this SQLite file or PostgreSQL database, instead of the user's own folder.",
        ),
    ] = None
    jobs_keep_s: Annotated[
        float | None, typer.Option(help="Seconds that a finished job is kept that does not say so itself. (a week)")
    ] = None
    allow_callback_hosts: Annotated[
        Texts,
        typer.Option(
            "--allow-callback-host", metavar="HOST", help="A private host that jobs may call back; may be given again."
        ),
    ] = None
    webhook_secret: Annotated[
        str | None, typer.Option(metavar="KEY", help="Sign callbacks with this key, in base64, as Standard Webhooks.")
    ] = None
    meme_search: Annotated[
        bool | None, typer.Option(help="Stand in for the image_to_text_generator of meme-search. (off)")
    ] = None
    image_root: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder of its images. (/app/public/memes)")
    ] = None
    callback_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Its receivers, before /status_receiver; by default $GEN_URL/image_cores of its own."
        ),
    ] = None
    job_delay: Annotated[
        float | None, typer.Option(help="Seconds before its jobs are begun, so that it sees them wait. (1)")
    ] = None


@dataclass(frozen=True)
class LogFlags:
    """The log."""

    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. (info)")] = None
    log_format: Annotated[str | None, typer.Option(help="text or json. (text)")] = None


# The flags of the last base come first.
@dataclass(frozen=True)
class WorkerFlags(LogFlags, JobFlags, RequestFlags, EngineFlags):
    """A flag for each setting of a server that also holds where nobody sends requests; None where it was not given."""


@dataclass(frozen=True)
class ServerFlags(LogFlags, JobFlags, HttpFlags, RequestFlags, EngineFlags):
    """A flag for each field of ServerSettings; None where it was not given."""


ConfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings in TOML, or a JSON file of the AI Manual Assistant.")
]


def read_server_settings(names: Texts, flags: ServerFlags | WorkerFlags, config: Path | None) -> "EffectiveSettings":
    """Settings from flags, environment and file; warnings go to standard error. Raises InvalidRequest."""
    from galago.server.setting_sources import read_settings

    given = {flag: value or None if isinstance(value, list) else value for flag, value in asdict(flags).items()}
    if names:
        given["model"] = [*names, *(given["model"] or [])]
    found = read_settings(given, config)
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return found
