"""Reads text files, local or remote, up to a maximum size."""

import re

from deeplab_tf import strict_json
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds

# Enough for millions of lines.
MAX_BYTES = 64 * 2**20


def read_content(path: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns a file's content; raises UserError if unreadable or above `max_bytes`."""
    with file_kinds.open_file(path) as file:
        size = file_kinds.get_file_size(file)
        content = file.read(size) if 0 < size <= max_bytes else b""
    if size > max_bytes:
        raise UserError(
            f"{path} has {size:,} bytes; the limit for such files is {max_bytes:,}"
        )
    return content


def read_words(path: str) -> list[str]:
    """Returns the words in a UTF-8 text file, such as a list of names.

    Raises:
        UserError: if the file cannot be read, is too large or is not text; the error
            names the line.
    """
    lines = split_lines(read_content(path), path)
    return [word for line in lines for word in line.split()]


def split_lines(content: bytes, source: str) -> list[str]:
    """Decodes UTF-8 text and splits it into lines, without line ends.

    Raises UserError, which names `source` and the line, if the content is too large or
    is not text.
    """
    text = strict_json.decode_utf8(content, source, MAX_BYTES)
    # Not `splitlines`, which also splits at some control characters.
    lines = re.split("\r\n|\r|\n", text)
    for number, line in enumerate(lines, 1):
        strict_json.check_text(line.replace("\t", " "), f"line {number} of {source}")
    return lines
