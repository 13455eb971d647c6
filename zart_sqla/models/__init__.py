"""The tables of zart_sqla as mapped classes."""

from zart_sqla.models.mapping import ZartModels, tables_of, zart_models
from zart_sqla.models.revision import SCHEMA_REVISION

__all__ = ["SCHEMA_REVISION", "ZartModels", "tables_of", "zart_models"]
