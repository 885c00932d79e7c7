"""The sections of the page, each a function from the report's values to HTML; `page.py` has them in order."""
