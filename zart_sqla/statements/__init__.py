"""Statements of SQLAlchemy Core, made once for each `TableNames`: no session, no connection, no await."""
