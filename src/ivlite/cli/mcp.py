"""`ivlite mcp`: a model and a folder of videos, for programs that speak the Model Context Protocol."""

import argparse
import os
import re

from ivlite.cli import arguments, say, videos
from ivlite.cli.progress import display
from ivlite.errors import UsageError

EPILOG = """\
examples:
  ivlite mcp model.gguf --root ~/Videos                        # as the command of a server in an MCP client
  ivlite mcp model.gguf --root ~/Videos --root /mnt/lectures
  ivlite mcp model.gguf --root ~/Videos --transport http       # at http://127.0.0.1:8081/mcp

Tools: index_video, ask_video, search_video, get_frames, ground. Clients name videos by their paths in the folders of --root, and
reach no other file. docs/guides/mcp.md has the configuration of clients.

Standard output is the protocol's; what is worth knowing goes to standard error. The server ends when its client closes standard
input (exit code 0), with SIGTERM (0) and with Ctrl-C (130). A port that is in use is exit code 8.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "mcp",
        help="answer other programs' agents about videos (MCP)",
        description="Serves a model and folders of videos to programs that speak the Model Context Protocol.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=arguments.path, help="a GGUF file made by `ivlite quantize`")
    group = parser.add_argument_group("server")
    group.add_argument("--root", action="append", type=arguments.path, metavar="DIR", required=True,
                       help="a folder whose videos clients may name; may be given several times")  # fmt: skip
    videos.add_library(group)
    group.add_argument("--transport", choices=("stdio", "http"), default="stdio",
                       help="stdio, or streamable HTTP for programs of this machine (default: stdio)")  # fmt: skip
    group.add_argument("--port", type=arguments.whole(0, 65535), metavar="N", help="of http (default: 8081; 0: any that is free)")  # fmt: skip
    arguments.add_machine(parser.add_argument_group("machine"))
    arguments.add_shared(parser.add_argument_group("output"), "--quiet", "--verbose",
                         quiet="no progress; only failures of the server")  # fmt: skip


def run(args):
    if args.port is not None and args.transport == "stdio":
        raise UsageError("--port is of --transport http")
    folders = [folder(path) for path in args.root]
    try:
        import mcp.server.stdio  # noqa: F401
    except ImportError as error:
        raise UsageError(f"the MCP server needs {error.name}: pip install 'ivlite[mcp]'") from None
    from ivlite.engine.batch import Engine
    from ivlite.interrupt import awaited
    from ivlite.serve import listen
    from ivlite.stop import current

    port = 8081 if args.port is None else args.port
    listening = listen.bound("127.0.0.1", port) if args.transport == "http" else None
    try:
        with videos.open_library(args, inputs=[args.model]) as library, loaded(args) as model, Engine(model) as engine:
            serve(args, engine, folders, library, listening, current())
    finally:
        if listening is not None:
            listening.close()
    awaited("terminated")
    return 0


def loaded(args):
    """The model, loaded with its progress on standard error."""
    progress = display(args.quiet, args.verbose)
    model = arguments.load(args, progress)
    if progress:
        progress.clear()
    return model


def serve(args, engine, folders, library, listening, stop):
    """Serves a loaded model until its client leaves or the Stop is set."""
    from ivlite.serve import listen, mcp, mcp_listen
    from ivlite.serve.mcp_calls import Desk
    from ivlite.serve.roots import Roots

    name = os.path.basename(os.fspath(args.model))  # as `ivlite index` calls it
    desk = Desk(engine, name, Roots(folders), library, log=lambda line: say("mcp", line))
    try:
        server = mcp.server(desk)
        desk.decoders.warm()
        if listening is None:
            mcp_listen.over_stdio(server, stop)
        else:
            print(f"{re.sub('[^A-Za-z0-9._-]+', '-', name)} at {listen.address(listening)}/mcp", flush=True)
            mcp_listen.over_http(server, desk, listening, stop)
    finally:
        desk.close()


def folder(path):
    """A folder with its links resolved. Raises UsageError."""
    from pathlib import Path

    if not os.path.isdir(path):
        raise UsageError(f"--root {path} is no folder")
    return Path(os.path.realpath(path))
