"""Parses the pages that the programs write."""

import base64
import html.parser
import io
import re

import numpy as np
from PIL import Image


class Page(html.parser.HTMLParser):
    """A parsed page: tags with attributes, texts, and rows of tables."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.texts, self.rows = text, [], [], []
        self._in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.lasttag not in ("style", "script"):
            self.texts.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    @property
    def headings(self):
        return re.findall(r"<h2>(.*)</h2>", self.source)

    @property
    def images(self):
        found = []
        for attributes in self.all("img"):
            data = attributes["src"].partition("base64,")[2]
            with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as file:
                found.append((attributes, np.array(file.convert("RGB"))))
        return found
