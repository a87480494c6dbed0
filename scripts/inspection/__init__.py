"""What inspect_image.py looks at, a module for each kind of thing. It runs inside an image, with the standard library and ``elf.py`` alone."""
