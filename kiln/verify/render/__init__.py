"""Other forms of a report: JUnit, Markdown, annotations and a page, each a pure function of the JSON document.

A report that was read from a file goes through ``shape.validate`` first: the forms take its shape for granted.
"""
