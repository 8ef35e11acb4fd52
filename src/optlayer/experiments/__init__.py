"""The experiments of the OptNet paper, and some beyond it: one file each, over the public API only.

Every module here with a function `main` is a subcommand of `optlayer`; its docstring and options are the help. Two
more make it a part of `optlayer paper`: `paper(folder, full)` runs it with the settings of the report, into `folder`,
and `report(folder)` turns the results there into a section of Markdown, whose pictures are
`img/experiments/NAME-PICTURE.png`. `compare(folder)`, if there, gives its rows for the table at the top: experiment,
the paper's number, ours.

What they share: `harness.py`, the run and the training; `files.py`, files that are written whole or not at all, and
`Mistake`, what whoever started a run can mend, in one sentence; `screen.py`, `pictures.py`, `machine.py`. An experiment
checks its options and data before it writes: the run's folder is made by the first thing that is put into it.
"""

ORDER = (
    "speed", "denoising", "classification", "sudoku", "expressiveness", "recipe", "sudoku9", "decisions", "infeasible",
)  # fmt: skip
"""As in the paper; what it has not comes last."""
