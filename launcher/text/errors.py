"""Errors that end `wpo prepare` with one sentence."""


class BadInput(Exception):
    """Something outside the program is wrong; the message is one sentence: what, where and what to do."""


class BadRow(Exception):
    """A row cannot be used. Whoever knows the file and the row's number turns it into BadInput."""
