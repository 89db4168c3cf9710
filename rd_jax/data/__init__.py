"""Reading images: files to arrays, folders in MVTec AD layout, a generated category."""
