"""Programs that write data sets in the folder layouts that the converters read."""
