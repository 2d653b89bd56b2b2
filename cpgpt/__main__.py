"""`python -m cpgpt` is the command `cpgpt`."""

from cpgpt.cli import app

app(prog_name="cpgpt")
