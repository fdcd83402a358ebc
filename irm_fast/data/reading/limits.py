"""How much the doors let in: what a file from a stranger may make us read, unpack, nest and compute.

Each limit has one name here; `docs/why/reliability.md` says what happens at each. Limits of rows are far above honest
logs, and no file needs more than about 1 GiB of memory to be refused.
"""

MAX_LINE = 2**24  # bytes of a row
MAX_DIGITS = 300  # of a whole number, which fits into a float then
MAX_DEPTH = 64  # of lists and objects within each other
MAX_GROWTH, ALWAYS_ALLOWED = 200, 2**26  # times the packed bytes read so far, and bytes, that a file may unpack to
MAX_DICTIONARY = 2**27  # bytes that unpacking xz may take; the largest setting of the program xz takes half of it
MAX_COLUMNS = 2**12  # of Parquet, those within others too
PARQUET_MEMORY = 2**30  # bytes that reading a few rows of Parquet may take
MAX_SETTINGS, MAX_VALUES = 2**20, 10**5  # bytes of a file of settings, and values, those that it repeats too
MAX_RECORD = 2**26  # bytes of a record of ours, such as irm_fast.json
MAX_NAME, MAX_TEXT = 2**16, 2**24  # characters of a name and of a text in a record
MAX_RENDERED = 2**24  # characters that a chat template may make of a conversation
RENDER_SECONDS, RENDER_MEMORY = 10, 2**30  # that it may take for a conversation, and bytes
