"""What builds the book's pages, apart from vmlib: a Sphinx extension and its helpers."""
