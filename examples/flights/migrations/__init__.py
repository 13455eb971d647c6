"""The app's Alembic environment."""
