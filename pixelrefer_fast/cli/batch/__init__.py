"""`describe --batch`: lines of requests in, lines of answers out."""
