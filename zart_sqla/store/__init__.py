"""Runs the statements in the caller's connection. It never commits, begins or rolls back.

All of it is synchronous over `sqlalchemy.Connection`: an async caller passes it to `run_sync`, so that one
implementation serves `AsyncSession`, `Session`, `AsyncConnection` and `Connection` alike.
"""
