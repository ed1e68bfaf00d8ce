"""Sessions to and from their files."""

import os

from ivlite.errors import ContextError, UsageError
from ivlite.files import expanded
from ivlite.output import check_place
from ivlite.session.file import SessionFile, absolute
from ivlite.session.packing import pack, unpack
from ivlite.session.table import Layout


def opened(model, path):
    """A Session whose file is at `path`: what the file holds, or an empty one if there is none yet.

    Raises SessionFileError (damaged, or of another model, cache kind or version), ContextError, Stopped; UsageError and
    DiskError where no file can be made.
    """
    if is_missing(path):
        check_place(path)  # before the work that is to be saved there
        session = model.session()
        session.file = SessionFile(path)
        return session
    with SessionFile.open(path) as file:
        file.table.layout.check_same(Layout.of(model.network, model.kv), file.path)
        state = unpack(file)
        if state.rows > model.room():
            raise ContextError(
                f"{file.path} has {state.rows} tokens and the context holds {model.room()}: raise the context"
            )
        try:
            session = type(model.session()).from_state(model, state, file.restore)
        except UsageError as error:
            raise file.damaged(str(error)) from None
    session.file = file
    if session.runner is not None:
        session.runner.held.lows[file] = state.rows
    return session


def is_missing(path):
    """Whether there is no file at a path, or at the end of a link."""
    try:
        os.stat(expanded(path))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        pass  # for those who open it to explain
    return False


def save(session, model, state, path, replace=True):
    """Saves a Session's state to its file, or to another path, which is its file from then on. replace: see Session.save.

    Raises UsageError, DiskError, OvertakenError, Stopped; the file then has the state saved before.
    """
    file = session.file if path is None or is_file(session.file, path) else SessionFile(path)
    if file is None:
        raise UsageError("the session has no file: name one, as in session.save('talk.ivs')")
    held, cache = (None, None) if session.runner is None else (session.runner.held, session.runner.cache)
    unchanged = held.lows.get(file, 0) if held else 0
    file.save(Layout.of(model.network, model.kv), *pack(state), cache, state.rows, unchanged, replace=replace)
    if held:
        held.lows[file] = state.rows
    session.file = file


def is_file(file, path):
    return file is not None and os.path.abspath(file.path) == os.path.abspath(absolute(path))
