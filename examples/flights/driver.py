"""Starts an execution for each day, and waits for all of them while the workers come and go.

The driver can be stopped and started again at any time: the executions have ids of their own, so those that there
are go on, and those that there are not are started.
"""

import asyncio
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, Final

from sqlalchemy import func, select

from examples.flights.audit import Audit, audit
from examples.flights.crew import ROOT, Crew
from examples.flights.database import Session, connect
from examples.flights.dataset import INBOX_VARIABLE, fill_inbox
from examples.flights.models import DaySummary, Flight, zart
from examples.flights.workflow import summarise
from zart_sqla import PostgresScheduler
