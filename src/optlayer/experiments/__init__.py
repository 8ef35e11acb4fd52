"""The experiments of the OptNet paper, and some beyond it: one file each, over the public API only.

Every module here with a function `main` is a subcommand of `optlayer`; its docstring and options are the help.
`paper(folder, full)` runs it with the settings of the report, `report(folder)` turns its results into Markdown.
`harness.py` holds what they share.
"""
