"""`ivlite serve`: a model over HTTP, for programs that speak OpenAI's API."""

import argparse
import os
import re

from ivlite.cli import arguments, say
from ivlite.cli.plan import size
from ivlite.cli.progress import display
from ivlite.errors import UsageError

EPILOG = """\
examples:
  ivlite serve model.gguf
  ivlite serve model.gguf --media-root ~/Videos
  ivlite serve model.gguf --port 0                                # any port that is free
  ivlite serve model.gguf --host 0.0.0.0 --api-key a-long-secret  # for other machines

Only programs of this machine reach the server, unless --host says otherwise; then clients need the key.
Addresses in requests are not fetched. docs/guides/server.md has the endpoints.

Ctrl-C stops the server (exit code 130), SIGTERM does too (exit code 0): answers have 3 seconds to end.
A second signal ends it at once. A port that is in use is exit code 8.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "serve",
        help="answer other programs over HTTP (OpenAI's API)",
        description="Serves a model over HTTP to programs that speak OpenAI's API.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=arguments.path, help="a GGUF file made by `ivlite quantize`")
    group = parser.add_argument_group("server")
    add = group.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="the address to listen at; without it 127.0.0.1, which only this machine reaches",
    )
    add("--port", type=arguments.whole(0, 65535), default=8080, metavar="N", help="default: 8080; 0: any that is free")
    add("--api-key", type=key, metavar="KEY", help="what clients must send (default with another --host: one is made)")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name by which clients reach the server",
    )
    add("--media-root", type=arguments.path, metavar="DIR", help="requests may name files under DIR, as file:// URIs")
    add("--max-body", type=size, metavar="SIZE", help="largest request (default: 256 MiB)")
    add("--max-file", type=size, metavar="SIZE", help="largest uploaded file (default: 64 GiB)")
    add("--max-waiting", type=arguments.whole(1, 100_000), default=64, metavar="N",
        help="requests that run or wait before others are refused (default: 64)")  # fmt: skip
    add("--parallel", type=arguments.whole(1, 256), metavar="N", help="answers that are computed together (default: 8)")
    arguments.add_machine(parser.add_argument_group("machine"))
    arguments.add_shared(parser.add_argument_group("output"), "--quiet", "--verbose",
                         quiet="no progress; only failures of the server")  # fmt: skip


def key(text):
    """An argparse type: an API key, which must be what a header can hold."""
    if not re.fullmatch(r"[!-~]{8,512}", text):
        raise argparse.ArgumentTypeError("a key has 8 to 512 ASCII characters, without spaces")
    return text


def run(args):
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(f"the server needs {error.name}: pip install 'ivlite[server]'") from None
    from ivlite.engine.batch import Engine
    from ivlite.interrupt import awaited
    from ivlite.serve import listen
    from ivlite.serve.guard import is_loopback
    from ivlite.stop import current

    root, loopback = media_root(args.media_root), is_loopback(args.host)
    made = None if loopback or args.api_key else new_key()
    listening = listen.bound(args.host, args.port)
    progress = display(args.quiet, args.verbose)
    try:
        with arguments.load(args, progress) as model:
            if progress:
                progress.clear()
            with Engine(model, **({} if args.parallel is None else {"most": args.parallel})) as engine:
                serve(args, engine, root, listening, made, loopback, current())
    finally:
        listening.close()
    awaited("terminated")
    return 0


def serve(args, engine, root, listening, made, loopback, stop):
    """Serves a loaded model until the Stop is set."""
    from ivlite.serve import listen
    from ivlite.serve.app import application
    from ivlite.serve.service import Limits, Service

    stated = {"body": args.max_body, "file": args.max_file, "waiting": args.max_waiting}
    limits = Limits(**{name: value for name, value in stated.items() if value is not None})
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(os.fspath(args.model)).removesuffix(".gguf")) or "model"
    service = Service(engine, name, root=root, limits=limits, log=lambda line: say("serve", line))
    try:
        app = application(service, loopback=loopback, key=args.api_key or made, hosts=(args.host, *args.allow_host))
        service.decoders.warm()
        print(f"{name} at {listen.address(listening)}/v1", flush=True)
        if made:
            print(f"API key: {made}", flush=True)
        listen.run(app, service, listening, stop)
    finally:
        service.close()


def new_key():
    import secrets

    return secrets.token_urlsafe(24)


def media_root(path):
    """The folder of file:// URIs with its links resolved, or None. Raises UsageError."""
    from pathlib import Path

    if path is None:
        return None
    if not os.path.isdir(path):
        raise UsageError(f"--media-root {path} is no folder")
    return Path(os.path.realpath(path))
