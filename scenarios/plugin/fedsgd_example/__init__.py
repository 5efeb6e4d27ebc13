"""Components for fedsgd from outside its package: copy a file, and change its rule."""
