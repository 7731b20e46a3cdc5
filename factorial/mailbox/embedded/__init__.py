"""`embedded:DIR`: a server of our own."""
