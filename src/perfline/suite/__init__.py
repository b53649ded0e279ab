"""Which tests do users run? These: ``pytest --pyargs perfline.suite -m perf --cases tiny``.

``perfline init`` writes them into a repository; this one's tests/perf and tests/accuracy are equal.
"""
