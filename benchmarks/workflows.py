"""What the benchmarks run."""

import time

from zart_sqla import Ok, TaskRegistry, durable, schedule, step, wait

STEPS = 5


@step
async def nothing(number: int) -> int:
    """Do nothing, durably."""
    return number


@durable("benchmark-steps")
async def five_steps(number: int) -> int:
    """Run five steps that do nothing."""
    for _ in range(STEPS):
        number = await nothing(number)
    return number


@durable("benchmark-group")
async def group(children: int) -> int:
    """Have children that do nothing, and tell how many did."""
    answers = await wait([schedule(nothing(number)) for number in range(children)])
    return sum(isinstance(answer, Ok) for answer in answers)


@durable("benchmark-clock")
async def read_clock() -> int:
    """Tell when the body began, by the clock that all processes of a machine share, in nanoseconds."""
    return time.monotonic_ns()


registry = TaskRegistry()
registry.register(five_steps)
registry.register(group)
registry.register(read_clock)
