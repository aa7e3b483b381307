"""The modules of memcnn, under its own paths."""
