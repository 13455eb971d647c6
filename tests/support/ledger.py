"""A table of the app's, in which steps write in their own transactions."""

from sqlalchemy import ForeignKey, MetaData, Text, UniqueConstraint, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from zart_sqla import PostgresScheduler


class Base(DeclarativeBase):
    """The app's models."""

    metadata = MetaData()


class Entry(Base):
    """A line of a ledger; that each note is there once is checked at the commit."""

    __tablename__ = "ledger"
    __table_args__ = (UniqueConstraint("note", deferrable=True, initially="DEFERRED"),)

    entry_id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(Text)
    corrects_id: Mapped[int | None] = mapped_column(ForeignKey("ledger.entry_id"))
    corrects: Mapped["Entry | None"] = relationship(back_populates="corrections", remote_side=[entry_id])
    corrections: Mapped[list["Entry"]] = relationship(back_populates="corrects")


def write_note(session: Session, note: str = "written") -> int:
    """Write in the ledger."""
    entry = Entry(note=note)
    session.add(entry)
    session.flush()
    return entry.entry_id


async def notes(scheduler: PostgresScheduler) -> list[str]:
    """Return what is in the ledger, in order."""
    async with AsyncSession(scheduler.engine) as session:
        return list(await session.scalars(select(Entry.note).order_by(Entry.entry_id)))
