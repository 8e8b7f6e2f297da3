"""Images and videos as files: found, checked, decoded."""
