"""The command `zart`: parse, call the client, print."""

from zart_sqla.cli.app import main

__all__ = ["main"]
