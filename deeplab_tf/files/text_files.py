"""Bounded reading of text files, local or remote."""

import re

from deeplab_tf import strict_json
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds

# Lists and histories of millions of lines.
MAX_BYTES = 64 * 2**20


def read_content(path: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a file that is not absurdly large.

    Args:
        path: Path of the file, for `tf.io.gfile`.
        max_bytes: Largest size that is accepted.

    Raises:
        UserError: if the file cannot be read or is larger.
    """
    with file_kinds.open_file(path) as file:
        size = file_kinds.file_size(file)
        # A file that grows meanwhile is read up to its old end.
        content = file.read(size) if 0 < size <= max_bytes else b""
    if size > max_bytes:
        raise UserError(
            f"{path} has {size:,} bytes; such a file has at most {max_bytes:,}"
        )
    return content


def read_words(path: str) -> list[str]:
    """Returns the words of a UTF-8 text file, such as a list of names.

    Raises:
        UserError: if the file cannot be read, is too large or not text; names the
            line.
    """
    lines = split_lines(read_content(path), path)
    return [word for line in lines for word in line.split()]


def split_lines(content: bytes, source: str) -> list[str]:
    """Returns the lines of a UTF-8 text, without their ends.

    Args:
        content: Bytes of a text file.
        source: What to call the file in an error.

    Raises:
        UserError: if the content is too large or not text; names the line.
    """
    text = strict_json.decode(content, source, MAX_BYTES)
    # Not `splitlines`, which takes some control characters for ends of lines.
    lines = re.split("\r\n|\r|\n", text)
    for number, line in enumerate(lines, 1):
        strict_json.check_text(line.replace("\t", " "), f"line {number} of {source}")
    return lines
