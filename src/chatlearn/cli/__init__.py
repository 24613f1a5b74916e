"""The command line: ``chatlearn run``, ``check``, ``report``, ``checkpoints``, ``export`` and the others of
:data:`COMMANDS`.

Imports of the package are made where they are used, so that ``--help`` comes at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from chatlearn.cli.commands import COMMANDS
from chatlearn.cli.words import parsed
from chatlearn.errors import ChatLearnError

__all__ = ["COMMANDS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Returns:
        0; 1 after an error of chatlearn (its text is printed), or where ``checkpoints`` finds damage; for ``launch``
        the code of the program. The process ends with 2 for unusable arguments, and with 130 after Ctrl-C.
    """
    command, what, options, rest = parsed(list(sys.argv[1:] if argv is None else argv))
    try:
        return command.run(what, options, rest) or 0
    except ChatLearnError as error:
        if error.__cause__ is not None:
            raise  # a user's own exception comes out with its own traceback first
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads has had enough, as in `chatlearn flow … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
