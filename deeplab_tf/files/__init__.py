"""Files on disk: what may be written, replaced, read, locked and unpacked."""
