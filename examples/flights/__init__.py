"""A year of flights, one execution a day, by workers that are killed while they work.

Read `workflow.py` first, then `models.py` and `worker.py`. The rest is what makes it a demonstration: `dataset.py`
brings the real data, `crew.py` starts and kills the workers, `audit.py` compares every table with the file.
"""
