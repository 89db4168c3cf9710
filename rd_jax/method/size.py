"""Sizes of images and maps."""

Size = int | tuple[int, int]  # pixels: of a square, or (height, width)


def height_and_width(size: Size) -> tuple[int, int]:
    """(height, width) in pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
