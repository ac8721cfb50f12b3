"""One module a file format: `read(data, bound)` returns a `Raster`, and raises `ImageError` only."""
