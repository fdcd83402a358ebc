"""A source of any format, opened by its content: blocks of rows, and columns where they are plain."""
