"""What a cache is: taps, shapes, places, file contents. Pure: nothing here opens a file."""
