"""How fast zart_sqla is, measured on a PostgreSQL that the measurement starts itself."""
