"""Parts of towers, of plain Flax and pure functions on arrays. Nothing here imports the rest of the project."""
