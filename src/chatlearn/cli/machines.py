"""Commands about machines, and what is installed on them."""

from __future__ import annotations

import argparse

from chatlearn.cli.output import write


def schema(_: str, options: argparse.Namespace, __: list[str]) -> None:
    """``chatlearn schema``."""
    import json

    from chatlearn.config.json_schema import json_schema

    write(json.dumps(json_schema(), indent=2), options.out)


def doctor(_: str, __: argparse.Namespace, ___: list[str]) -> None:
    """``chatlearn doctor``."""
    from chatlearn.observe.doctor import doctor as examined

    print(examined())


def launch(_: str, __: argparse.Namespace, rest: list[str]) -> int:
    """``chatlearn launch``."""
    from chatlearn.launch.command import launch_command

    return launch_command(rest)
